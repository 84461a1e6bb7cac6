// SPDX-License-Identifier: Apache-2.0
#include "kvm/vm.h"

#include <signal.h>

#include <algorithm>
#include <cstring>

#include "kvm/cpu/cpuid_policy.h"
#include "kvm/host_check.h"
#include "vmm/os/log.h"

namespace kvmbus::kvm {
namespace {

using vmm::Code;
using vmm::Result;

constexpr uint32_t kIoApicPins = 24;
constexpr uint64_t kTssGpa = 0xfffbd000;  // three pages that Intel hosts need, under the BIOS area
constexpr uint64_t kIdentityMapGpa = 0xfffbc000;  // one page

void InstallKickHandler() {
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  ::sigaction(KickSignal(), &action, nullptr);
}

kvm_irq_routing_entry ChipRoute(uint32_t gsi, uint32_t chip, uint32_t pin) {
  kvm_irq_routing_entry entry = {};
  entry.gsi = gsi;
  entry.type = KVM_IRQ_ROUTING_IRQCHIP;
  entry.u.irqchip.irqchip = chip;
  entry.u.irqchip.pin = pin;
  return entry;
}

}  // namespace

/// A pin of the in-kernel I/O APIC and PIC.
class KvmVm::Line final : public vmm::InterruptLine {
 public:
  Line(const VmFd& vm, uint32_t gsi) : vm_(vm), gsi_(gsi) {}
  void Set(bool asserted) override {
    const auto done = vm_.IrqLine(gsi_, asserted);
    if (!done.ok()) spdlog::error("interrupt line {}: {}", gsi_, done.error().ToString());
  }

 private:
  const VmFd& vm_;
  uint32_t gsi_;
};

Result<std::unique_ptr<KvmVm>> KvmVm::Create(const Options& options, vmm::GuestMemory& memory,
                                             vmm::Loop& loop) {
  TRY_VOID(RequireHost(options.unsupported_without_slat));
  SystemFd system = TRY(SystemFd::Open());
  VmFd vm(TRY(system.CreateVm()));
  std::unique_ptr<KvmVm> self(new KvmVm(std::move(system), std::move(vm), memory));
  TRY_VOID(self->Build(options, loop));
  return self;
}

KvmVm::KvmVm(SystemFd system, VmFd vm, vmm::GuestMemory& memory)
    : system_(std::move(system)),
      vm_(std::move(vm)),
      memory_(memory),
      dirty_log_(vm_, memory),
      crash_(memory) {}

KvmVm::~KvmVm() = default;

Result<void> KvmVm::Build(const Options& options, vmm::Loop& loop) {
  InstallKickHandler();
  TRY_VOID(vm_.SetIdentityMapAddr(kIdentityMapGpa));
  TRY_VOID(vm_.SetTssAddr(kTssGpa));
  TRY_VOID(vm_.EnableCap(KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR",
                         KVM_MSR_EXIT_REASON_FILTER));
  TRY_VOID(vm_.SetMsrFilterDeny(CrashRegisters::kFirstMsr, CrashRegisters::kMsrCount));
  TRY_VOID(vm_.CreateIrqchip());
  TRY_VOID(vm_.CreatePit2());
  TRY_VOID(dirty_log_.AddMemory());
  synic_ = std::make_unique<KvmSynic>(vm_, memory_, loop, options.vcpu_count,
                                      [this](uint32_t vp) { vcpus_[vp]->Poke(); });
  shared_.synic = synic_.get();
  shared_.crash = &crash_;
  shared_.xsave_bytes =
      static_cast<size_t>(std::max<int>(vm_.CheckExtension(KVM_CAP_XSAVE2), kXsaveBytes));
  shared_.msrs = TRY(MsrsToSave());
  TRY_VOID(AddVcpus(options.vcpu_count));
  TRY_VOID(RouteInterrupts(options.vcpu_count));
  TRY_VOID(synic_->Connect(kIoApicPins));
  for (uint32_t gsi = 0; gsi < kIoApicPins; ++gsi)
    lines_.push_back(std::make_unique<Line>(vm_, gsi));
  const std::vector<uint32_t> refused = vcpus_[0]->RefusedMsrs();
  std::erase_if(shared_.msrs, [&](uint32_t msr) {
    return std::find(refused.begin(), refused.end(), msr) != refused.end();
  });
  return SaveTo(&power_on_);
}

Result<void> KvmVm::AddVcpus(uint32_t count) {
  const int limit = vm_.CheckExtension(KVM_CAP_MAX_VCPUS);
  if (count > static_cast<uint32_t>(limit))
    return vmm::MakeError(Code::kInvalidArgument,
                          "{} virtual processors: this host's KVM allows {}", count, limit);
  CpuidInputs inputs;
  inputs.supported = TRY(system_.SupportedCpuid());
  inputs.hv_supported = TRY(system_.SupportedHvCpuid());
  inputs.vcpu_count = count;
  inputs.tsc_deadline_timer = vm_.CheckExtension(KVM_CAP_TSC_DEADLINE_TIMER) != 0;
  TRY_VOID(CheckHypervSupport(inputs.hv_supported));
  const size_t mmap_size = TRY(system_.VcpuMmapSize());
  // In VP-index order, without gaps: then KVM finds a VP by its index at once.
  for (uint32_t i = 0; i < count; ++i)
    vcpus_.push_back(TRY(KvmVcpu::Create(vm_, i, mmap_size, MakeGuestCpuid(inputs, i), shared_)));
  return {};
}

Result<void> KvmVm::RouteInterrupts(uint32_t vcpu_count) {
  std::vector<kvm_irq_routing_entry> routes;
  for (uint32_t gsi = 0; gsi < kIoApicPins; ++gsi) {
    if (gsi == 2) continue;  // the PIC's cascade
    if (gsi < 8) routes.push_back(ChipRoute(gsi, KVM_IRQCHIP_PIC_MASTER, gsi));
    if (gsi >= 8 && gsi < 16) routes.push_back(ChipRoute(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8));
    routes.push_back(
        ChipRoute(gsi, KVM_IRQCHIP_IOAPIC, gsi == 0 ? 2 : gsi));  // the PIT is on pin 2
  }
  for (uint32_t vp = 0; vp < vcpu_count; ++vp) {
    kvm_irq_routing_entry entry = {};
    entry.gsi = kIoApicPins + vp;
    entry.type = KVM_IRQ_ROUTING_HV_SINT;
    entry.u.hv_sint.vcpu = vp;
    entry.u.hv_sint.sint = KvmSynic::kVmbusSint;
    routes.push_back(entry);
  }
  return vm_.SetGsiRouting(routes);
}

Result<std::vector<uint32_t>> KvmVm::MsrsToSave() const {
  std::vector<uint32_t> list;
  for (const uint32_t msr : TRY(system_.MsrIndexList())) {
    const bool kvm_clock = msr == 0x11 || msr == 0x12 || (msr >= 0x4b564d00 && msr <= 0x4b564dff);
    const bool hyperv = msr >= 0x40000000 && msr <= 0x400001ff;  // saved by name, see vcpu_state.cc
    const bool tsc = msr == 0x10;
    if (!kvm_clock && !hyperv && !tsc) list.push_back(msr);
  }
  return list;
}

vmm::InterruptLine& KvmVm::interrupt_line(uint32_t gsi) {
  KVMBUS_ASSERT(gsi < lines_.size());
  return *lines_[gsi];
}

Result<void> KvmVm::SaveTo(state::Hypervisor* state) const {
  for (const auto& vcpu : vcpus_) TRY_VOID(vcpu->Save(state->add_vcpus()));
  state->set_clock_ns(TRY(vm_.GetClock()).clock);
  state->set_pic_master(ToBytes(TRY(vm_.GetIrqchip(KVM_IRQCHIP_PIC_MASTER))));
  state->set_pic_slave(ToBytes(TRY(vm_.GetIrqchip(KVM_IRQCHIP_PIC_SLAVE))));
  state->set_ioapic(ToBytes(TRY(vm_.GetIrqchip(KVM_IRQCHIP_IOAPIC))));
  state->set_pit(ToBytes(TRY(vm_.GetPit2())));
  for (const uint64_t parameter : crash_.parameters()) state->add_crash_parameters(parameter);
  state->set_tsc_khz(static_cast<uint32_t>(vcpus_[0]->TscKhz().value_or(0)));
  return {};
}

Result<void> KvmVm::RestoreFrom(const state::Hypervisor& state, bool with_time) {
  const VmRecords records = TRY(ReadRecords(state, vcpus_.size(), shared_.xsave_bytes, memory_));
  TRY_VOID(vm_.SetIrqchip(records.pic_master));
  TRY_VOID(vm_.SetIrqchip(records.pic_slave));
  TRY_VOID(vm_.SetIrqchip(records.ioapic));
  TRY_VOID(vm_.SetPit2(records.pit));
  if (with_time) {
    // Before the reference TSC page is enabled again by the processors' MSRs: KVM fills it from
    // this clock.
    kvm_clock_data clock = {};
    clock.clock = state.clock_ns();
    TRY_VOID(vm_.SetClock(clock));
  }
  for (size_t i = 0; i < vcpus_.size(); ++i)
    TRY_VOID_CTX(vcpus_[i]->Restore(records.vcpus[i], state.vcpus(static_cast<int>(i)), with_time),
                 "restoring vCPU {}", i);
  crash_.set_parameters(records.crash_parameters);
  return {};
}

void KvmVm::Reset() {
  synic_
      ->Reset();  // gives back the RAM beneath the overlay pages, before the processors forget them
  shared_.reset = RestoreFrom(power_on_, false);
}

Result<std::string> KvmVm::Save() {
  state::Hypervisor state;
  TRY_VOID(SaveTo(&state));
  return state.SerializeAsString();
}

Result<void> KvmVm::Restore(uint32_t, std::string_view bytes) {
  state::Hypervisor state;
  if (!state.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return vmm::Error(Code::kDataLoss, "the saved processors' state cannot be parsed");
  return RestoreFrom(state, true);
}

void KvmVm::VisitCounters(const vmm::CounterVisitor& visit) const {
  vmm::Counter exits;
  for (const auto& vcpu : vcpus_) exits.Add(vcpu->exits());
  visit("vcpu_exits_to_vmm", exits);
  synic_->VisitCounters(visit);
}

}  // namespace kvmbus::kvm
