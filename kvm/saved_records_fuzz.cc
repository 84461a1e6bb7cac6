// SPDX-License-Identifier: Apache-2.0
// Saved processors and interrupt controllers from hostile files: what is taken is of this machine,
// whole, and the same bytes; what is not says why.
#include "kvm/hyperv/synic.h"
#include "kvm/saved_records.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/hostile_state.h"

namespace {

using namespace kvmbus;  // NOLINT: a fuzz target is a program

constexpr int kVcpus = 2;
constexpr size_t kXsave = 4096;
constexpr uint64_t kRam = 2u << 20;

template <typename T>
std::string Zeroes() {
  return std::string(sizeof(T), '\0');
}

std::string Chip(uint32_t id) {
  kvm_irqchip chip = {};
  chip.chip_id = id;
  return kvm::ToBytes(chip);
}

/// The whole structs are long, so the state is sound but for what the input says.
state::Hypervisor Sound() {
  state::Hypervisor state;
  for (int i = 0; i < kVcpus; ++i) {
    state::Vcpu& vcpu = *state.add_vcpus();
    vcpu.set_regs(Zeroes<kvm_regs>());
    vcpu.set_sregs(Zeroes<kvm_sregs>());
    vcpu.set_xcrs(Zeroes<kvm_xcrs>());
    vcpu.set_debugregs(Zeroes<kvm_debugregs>());
    vcpu.set_lapic(Zeroes<kvm_lapic_state>());
    vcpu.set_events(Zeroes<kvm_vcpu_events>());
    vcpu.set_xsave(std::string(kXsave, '\0'));
    state::SynicVp& synic = *vcpu.mutable_synic();
    synic.set_simp_gpa(0x3000);
    synic.set_simp_beneath(std::string(vmm::kPageSize, '\0'));
    state::SynicMessage& message = *synic.add_queued();
    message.set_sint(kvm::KvmSynic::kVmbusSint);
    message.set_payload("message");
  }
  state.set_pic_master(Chip(KVM_IRQCHIP_PIC_MASTER));
  state.set_pic_slave(Chip(KVM_IRQCHIP_PIC_SLAVE));
  state.set_ioapic(Chip(KVM_IRQCHIP_IOAPIC));
  state.set_pit(Zeroes<kvm_pit_state2>());
  for (int i = 0; i < 5; ++i) state.add_crash_parameters(i);
  return state;
}

/// One field becomes what the input has; so the long ones before it need not be guessed.
void Change(tests::FuzzInput& input, state::Hypervisor* state) {
  state::Vcpu& vcpu = *state->mutable_vcpus(input.Byte() % kVcpus);
  state::SynicVp& synic = *vcpu.mutable_synic();
  std::string* const fields[] = {
      vcpu.mutable_regs(),           vcpu.mutable_sregs(),
      vcpu.mutable_xcrs(),           vcpu.mutable_debugregs(),
      vcpu.mutable_lapic(),          vcpu.mutable_events(),
      vcpu.mutable_xsave(),          synic.mutable_simp_beneath(),
      synic.mutable_siefp_beneath(), state->mutable_pic_master(),
      state->mutable_pic_slave(),    state->mutable_ioapic(),
      state->mutable_pit(),          synic.mutable_queued(0)->mutable_payload()};
  const uint8_t which = input.Byte();
  if (which < std::size(fields)) {
    std::string& field = *fields[which];
    field.resize(input.Word() % 0x3000);
    const std::string bytes = tests::TakeString(input, input.Byte());
    std::copy_n(bytes.begin(), std::min(bytes.size(), field.size()), field.begin());
    return;
  }
  switch (which % 6) {
    case 0:
      return synic.set_simp_gpa(input.Word() * uint64_t{256});
    case 1:
      return synic.set_siefp_gpa(input.Word() * uint64_t{4096});
    case 2:
      return synic.mutable_queued(0)->set_sint(input.Byte());
    case 3:
      for (int i = input.Byte(); i > 0; --i) *synic.add_queued() = synic.queued(0);
      return;
    case 4:
      for (int i = input.Word() % 1024; i > 0; --i) vcpu.add_msrs()->set_index(i);
      return;
    default:
      return state->mutable_crash_parameters()->Resize(input.Byte() % 8, 0);
  }
}

void CheckTaken(const state::Hypervisor& state, const kvm::VmRecords& records,
                const vmm::GuestMemory& memory) {
  KVMBUS_ASSERT(records.vcpus.size() == kVcpus && state.vcpus_size() == kVcpus);
  KVMBUS_ASSERT(kvm::ToBytes(records.pic_master) == state.pic_master());
  KVMBUS_ASSERT(kvm::ToBytes(records.ioapic) == state.ioapic());
  KVMBUS_ASSERT(kvm::ToBytes(records.pit) == state.pit());
  for (int i = 0; i < kVcpus; ++i) {
    const state::Vcpu& vcpu = state.vcpus(i);
    const kvm::VcpuRecords& record = records.vcpus[static_cast<size_t>(i)];
    KVMBUS_ASSERT(kvm::ToBytes(record.regs) == vcpu.regs());
    KVMBUS_ASSERT(kvm::ToBytes(record.sregs) == vcpu.sregs());
    KVMBUS_ASSERT(kvm::ToBytes(record.xcrs) == vcpu.xcrs());
    KVMBUS_ASSERT(kvm::ToBytes(record.debugregs) == vcpu.debugregs());
    KVMBUS_ASSERT(kvm::ToBytes(record.lapic) == vcpu.lapic());
    KVMBUS_ASSERT(kvm::ToBytes(record.events) == vcpu.events());
    KVMBUS_ASSERT(vcpu.xsave().size() == kXsave && vcpu.msrs_size() <= 256);
    const state::SynicVp& synic = vcpu.synic();
    for (const uint64_t gpa : {synic.simp_gpa(), synic.siefp_gpa()})
      KVMBUS_ASSERT(gpa == 0 || (gpa % vmm::kPageSize == 0 && memory.Contains(gpa, 4096)));
    KVMBUS_ASSERT(static_cast<size_t>(synic.queued_size()) <= kvm::KvmSynic::kQueueLimit);
    for (const auto& message : synic.queued())
      KVMBUS_ASSERT(message.payload().size() <= vmm::kHvMessagePayloadMax);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const vmm::MemoryRange kRanges[] = {{0, kRam}};
  static const auto memory = std::move(vmm::GuestMemory::Create(kRanges)).value();
  tests::FuzzInput input(data, size);
  state::Hypervisor state = Sound();
  if (input.Byte() % 4 == 0) {
    if (!state.ParseFromString(tests::HostileState(input, state.SerializeAsString()))) return 0;
  } else {
    for (int changes = 0; changes < 4 && !input.empty(); ++changes) Change(input, &state);
  }
  const auto records = kvm::ReadRecords(state, kVcpus, kXsave, *memory);
  if (records.ok())
    CheckTaken(state, *records, *memory);
  else
    KVMBUS_ASSERT(!records.error().ToString().empty());
  return 0;
}
