// SPDX-License-Identifier: Apache-2.0
/// \file
/// KvmVcpu: one virtual processor: its run loop, its exits, its state.
#pragma once

#include <pthread.h>

#include <atomic>
#include <memory>
#include <vector>

#include "kvm/hyperv/crash_registers.h"
#include "kvm/hyperv/synic.h"
#include "kvm/saved_records.h"
#include "kvm/uapi/kvm_fds.h"
#include "state/hypervisor.pb.h"
#include "vmm/hypervisor/vm.h"

namespace kvmbus::kvm {

/// Home: the thread that calls Run; state functions are the main thread's while no thread is in
/// Run.
class KvmVcpu final : public vmm::Vcpu {
 public:
  struct Shared {
    KvmSynic* synic;
    CrashRegisters* crash;
    size_t xsave_bytes;  ///< of an XSAVE area: KVM_CAP_XSAVE2
    std::vector<uint32_t>
        msrs;  ///< to save, beyond Hyper-V's; those that the host refuses are taken out
    vmm::Result<void> reset;  ///< the last one's; a processor that could not be reset does not run
  };

  static vmm::Result<std::unique_ptr<KvmVcpu>> Create(const VmFd& vm, uint32_t index,
                                                      size_t mmap_size,
                                                      std::span<const kvm_cpuid_entry2> cpuid,
                                                      Shared& shared);

  // Vcpu
  void Run(vmm::ExitHandler& handler) override;
  void Kick() override;
  vmm::Result<void> SetBootState(const vmm::BootState& boot) override;

  /// Leaves guest code, looks for messages, goes on. Any thread.
  void Poke();

  vmm::Result<void> Save(state::Vcpu* state) const;
  /// `records` are of `state`. Without `with_tsc` the time stamp counter runs on (a reset).
  vmm::Result<void> Restore(const VcpuRecords& records, const state::Vcpu& state, bool with_tsc);
  /// Writes each MSR of the list back and returns those that the host refuses.
  std::vector<uint32_t> RefusedMsrs() const;
  vmm::Result<int> TscKhz() const { return fd_.TscKhz(); }

  uint64_t exits() const { return exits_.load(std::memory_order_relaxed); }

 private:
  KvmVcpu(VcpuFd fd, uint32_t index, Shared& shared)
      : fd_(std::move(fd)), index_(index), shared_(shared) {}

  vmm::Result<void> PowerOn(std::span<const kvm_cpuid_entry2> cpuid);
  /// False if the processor must not run on (it waits for Kick).
  bool HandleExit(vmm::ExitHandler& handler);
  void HandlePortExit(vmm::ExitHandler& handler);
  void HandleMmioExit(vmm::ExitHandler& handler);
  void HandleMsrExit(vmm::ExitHandler& handler);
  void CompletePendingExit(vmm::ExitHandler& handler);
  vmm::Error InternalError() const;
  vmm::Result<void> SaveMsrs(state::Vcpu* state) const;
  vmm::Result<void> RestoreMsrs(const state::Vcpu& state, bool late);

  VcpuFd fd_;
  const uint32_t index_;
  Shared& shared_;
  std::atomic<bool> stop_requested_{false};
  std::atomic<pthread_t> thread_{};
  std::atomic<bool> in_run_{false};
  std::atomic<uint64_t> exits_{0};
};

/// The signal that makes a thread leave KVM_RUN; its handler does nothing. Installed once by KvmVm.
int KickSignal();

}  // namespace kvmbus::kvm
