// SPDX-License-Identifier: Apache-2.0
#include "kvm/vcpu.h"

#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "vmm/os/log.h"

namespace kvmbus::kvm {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::Result;

constexpr uint32_t kMsrMtrrDefType = 0x2ff;
constexpr uint64_t kMtrrEnableWriteBack = 1u << 11 | 6;
constexpr uint32_t kLapicLvtLint0 = 0x350;
constexpr uint32_t kLapicLvtLint1 = 0x360;
constexpr uint32_t kDeliveryExtInt = 7u << 8;
constexpr uint32_t kDeliveryNmi = 4u << 8;

void SetLapicRegister(kvm_lapic_state& lapic, uint32_t offset, uint32_t value) {
  std::memcpy(lapic.regs + offset, &value, sizeof(value));
}

}  // namespace

int KickSignal() { return SIGRTMIN; }

Result<std::unique_ptr<KvmVcpu>> KvmVcpu::Create(const VmFd& vm, uint32_t index, size_t mmap_size,
                                                 std::span<const kvm_cpuid_entry2> cpuid,
                                                 Shared& shared) {
  std::unique_ptr<KvmVcpu> self(
      new KvmVcpu(TRY(VcpuFd::Create(vm, index, mmap_size)), index, shared));
  TRY_VOID_CTX(self->PowerOn(cpuid), "setting up vCPU {}", index);
  return self;
}

Result<void> KvmVcpu::PowerOn(std::span<const kvm_cpuid_entry2> cpuid) {
  TRY_VOID(fd_.EnableCap(KVM_CAP_HYPERV_SYNIC2, "KVM_CAP_HYPERV_SYNIC2"));
  TRY_VOID(fd_.EnableCap(KVM_CAP_HYPERV_ENFORCE_CPUID, "KVM_CAP_HYPERV_ENFORCE_CPUID"));
  TRY_VOID(fd_.SetCpuid2(cpuid));
  const kvm_msr_entry msrs[] = {
      {kMsrVpIndex, 0, index_},
      {kMsrScontrol, 0, 1},  // older kernels start it at 0, real machines at 1
      {kMsrMtrrDefType, 0, kMtrrEnableWriteBack}};
  TRY_VOID(fd_.SetMsrs(msrs));
  auto lapic = TRY(fd_.Get<kvm_lapic_state>(KVM_GET_LAPIC, "KVM_GET_LAPIC"));
  SetLapicRegister(lapic, kLapicLvtLint0, kDeliveryExtInt);
  SetLapicRegister(lapic, kLapicLvtLint1, kDeliveryNmi);
  return fd_.Set(KVM_SET_LAPIC, "KVM_SET_LAPIC", lapic);
}

void KvmVcpu::Poke() {
  // The order matters: whoever clears immediate_exit looks at the requests afterwards.
  std::atomic_ref<uint8_t>(fd_.run()->immediate_exit).store(1);
  if (in_run_.load()) ::pthread_kill(thread_.load(), KickSignal());
}

void KvmVcpu::Kick() {
  stop_requested_.store(true);
  stop_requested_.notify_all();
  Poke();
}

void KvmVcpu::Run(vmm::ExitHandler& handler) {
  thread_.store(::pthread_self());
  in_run_.store(true);
  std::atomic_ref<uint8_t> immediate_exit(fd_.run()->immediate_exit);
  if (!shared_.reset.ok()) {
    handler.OnVcpuFailure(index_, Error(shared_.reset.error()).WithContext("resetting"));
    stop_requested_.wait(false);
  }
  while (!stop_requested_.load()) {
    shared_.synic->DeliverPending(index_);
    const int error = fd_.Run();
    if (error == EINTR || error == EAGAIN) {
      immediate_exit.store(0);
      continue;
    }
    exits_.store(exits_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    bool runs_on = false;
    if (error != 0)
      handler.OnVcpuFailure(index_, Error::FromErrno(error, "KVM_RUN"));
    else
      runs_on = HandleExit(handler);
    if (!runs_on) stop_requested_.wait(false);
  }
  CompletePendingExit(handler);
  in_run_.store(false);
  stop_requested_.store(false);
}

void KvmVcpu::CompletePendingExit(vmm::ExitHandler& handler) {
  // KVM finishes the instruction of the last exit when it is entered again; with immediate_exit it
  // does no more.
  std::atomic_ref<uint8_t> immediate_exit(fd_.run()->immediate_exit);
  for (;;) {
    immediate_exit.store(1);
    const int error = fd_.Run();
    if (error != 0) break;  // EINTR: done
    if (!HandleExit(handler)) break;
  }
  immediate_exit.store(0);
}

bool KvmVcpu::HandleExit(vmm::ExitHandler& handler) {
  kvm_run* run = fd_.run();
  switch (run->exit_reason) {
    case KVM_EXIT_IO:
      HandlePortExit(handler);
      return true;
    case KVM_EXIT_MMIO:
      HandleMmioExit(handler);
      return true;
    case KVM_EXIT_HYPERV:
      if (run->hyperv.type == KVM_EXIT_HYPERV_SYNIC)
        shared_.synic->OnSynicExit(index_, run->hyperv);
      if (run->hyperv.type == KVM_EXIT_HYPERV_HCALL)
        run->hyperv.u.hcall.result = shared_.synic->OnHypercall(run->hyperv);
      return true;
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
      HandleMsrExit(handler);
      return true;
    case KVM_EXIT_INTR:
      return true;
    case KVM_EXIT_SHUTDOWN:
      handler.OnResetRequest("triple fault");
      return false;
    case KVM_EXIT_SYSTEM_EVENT:
      if (run->system_event.type == KVM_SYSTEM_EVENT_RESET) {
        handler.OnResetRequest("the guest wrote the Hyper-V reset register");
        return false;
      }
      handler.OnVcpuFailure(index_, vmm::MakeError(Code::kInternal, "KVM system event {}",
                                                   uint32_t{run->system_event.type}));
      return false;
    default:
      handler.OnVcpuFailure(index_, InternalError());
      return false;
  }
}

Error KvmVcpu::InternalError() const {
  const kvm_run* run = fd_.run();
  const auto regs = fd_.Get<kvm_regs>(KVM_GET_REGS, "KVM_GET_REGS");
  const uint64_t rip = regs.ok() ? regs->rip : 0;
  if (run->exit_reason == KVM_EXIT_FAIL_ENTRY)
    return vmm::MakeError(
        Code::kInternal,
        "the processor refused to enter the guest (hardware reason {:#x}, RIP {:#x})",
        uint64_t{run->fail_entry.hardware_entry_failure_reason}, rip);
  if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
    return vmm::MakeError(Code::kInternal, "KVM internal error {} at RIP {:#x}",
                          uint32_t{run->internal.suberror}, rip);
  return vmm::MakeError(Code::kInternal, "unexpected KVM exit {} at RIP {:#x}",
                        uint32_t{run->exit_reason}, rip);
}

void KvmVcpu::HandlePortExit(vmm::ExitHandler& handler) {
  kvm_run* run = fd_.run();
  uint8_t* data = reinterpret_cast<uint8_t*>(run) + run->io.data_offset;
  const unsigned size = run->io.size;
  for (uint32_t i = 0; i < run->io.count; ++i, data += size) {
    uint64_t value = 0;
    if (run->io.direction == KVM_EXIT_IO_IN) {
      value = handler.PortRead(run->io.port, size);
      std::memcpy(data, &value, size);
    } else {
      std::memcpy(&value, data, size);
      handler.PortWrite(run->io.port, size, value);
    }
  }
}

void KvmVcpu::HandleMmioExit(vmm::ExitHandler& handler) {
  kvm_run* run = fd_.run();
  const unsigned size = std::min<unsigned>(run->mmio.len, 8);
  uint64_t value = 0;
  if (run->mmio.is_write) {
    std::memcpy(&value, run->mmio.data, size);
    handler.MmioWrite(run->mmio.phys_addr, size, value);
  } else {
    value = handler.MmioRead(run->mmio.phys_addr, size);
    std::memcpy(run->mmio.data, &value, size);
  }
}

void KvmVcpu::HandleMsrExit(vmm::ExitHandler& handler) {
  kvm_run* run = fd_.run();
  run->msr.error = 1;  // #GP
  if (!CrashRegisters::Owns(run->msr.index)) return;
  run->msr.error = 0;
  if (run->exit_reason == KVM_EXIT_X86_RDMSR) {
    run->msr.data = shared_.crash->Read(run->msr.index);
  } else if (const auto report = shared_.crash->Write(run->msr.index, run->msr.data)) {
    handler.OnGuestCrash(*report);
  }
}

Result<void> KvmVcpu::SetBootState(const vmm::BootState& boot) {
  if (boot.mode == vmm::BootState::Mode::kReset) return {};
  auto sregs = TRY(fd_.Get<kvm_sregs>(KVM_GET_SREGS, "KVM_GET_SREGS"));
  const bool long_mode = boot.mode == vmm::BootState::Mode::kLong64;
  kvm_segment code = {};
  code.limit = 0xffffffff;
  code.selector = boot.cs_selector;
  code.type = 0xb;  // execute, read, accessed
  code.present = code.s = code.g = 1;
  code.l = long_mode ? 1 : 0;
  code.db = long_mode ? 0 : 1;
  kvm_segment data = code;
  data.selector = boot.ds_selector;
  data.type = 3;  // read, write, accessed
  data.l = 0;
  data.db = 1;
  kvm_segment task = {};
  task.limit = 0x67;
  task.type = 0xb;
  task.present = 1;
  sregs.cs = code;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
  sregs.tr = task;
  sregs.gdt.base = boot.gdt_base;
  sregs.gdt.limit = boot.gdt_limit;
  constexpr uint64_t kCr0ProtectionEnable = 1, kCr0ExtensionType = 1u << 4, kCr0Paging = 1u << 31;
  constexpr uint64_t kCr4PhysicalAddressExtension = 1u << 5;
  constexpr uint64_t kEferLongModeEnable = 1u << 8, kEferLongModeActive = 1u << 10;
  sregs.cr0 = kCr0ProtectionEnable | kCr0ExtensionType | (long_mode ? kCr0Paging : 0);
  sregs.cr3 = long_mode ? boot.cr3 : 0;
  sregs.cr4 = long_mode ? kCr4PhysicalAddressExtension : 0;
  sregs.efer = long_mode ? kEferLongModeEnable | kEferLongModeActive : 0;
  TRY_VOID(fd_.Set(KVM_SET_SREGS, "KVM_SET_SREGS", sregs));
  kvm_regs regs = {};
  regs.rflags = 2;
  regs.rip = boot.rip;
  regs.rsi = boot.rsi;
  regs.rbx = boot.rbx;
  regs.rsp = boot.rsp;
  return fd_.Set(KVM_SET_REGS, "KVM_SET_REGS", regs);
}

}  // namespace kvmbus::kvm
