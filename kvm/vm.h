// SPDX-License-Identifier: Apache-2.0
/// \file
/// KvmVm: a virtual machine on KVM: memory slots, interrupt controllers, Hyper-V partition,
/// processors.
#pragma once

#include <memory>
#include <vector>

#include "kvm/dirty_log.h"
#include "kvm/hyperv/crash_registers.h"
#include "kvm/hyperv/synic.h"
#include "kvm/uapi/kvm_fds.h"
#include "kvm/vcpu.h"
#include "vmm/event/loop.h"
#include "vmm/hypervisor/vm.h"
#include "vmm/memory/guest_memory.h"

namespace kvmbus::kvm {

/// Home: the main thread; see Vcpu and SynicPorts for what other threads may call.
class KvmVm final : public vmm::Vm {
 public:
  struct Options {
    uint32_t vcpu_count = 1;
    /// For tests of the machine model alone; vmmd never sets it.
    bool unsupported_without_slat = false;
  };

  /// kFailedPrecondition, with the remedy, where the host lacks what CheckHost demands.
  static vmm::Result<std::unique_ptr<KvmVm>> Create(const Options& options,
                                                    vmm::GuestMemory& memory, vmm::Loop& loop);
  ~KvmVm() override;

  // Vm
  uint32_t vcpu_count() const override { return static_cast<uint32_t>(vcpus_.size()); }
  vmm::Vcpu& vcpu(uint32_t index) override { return *vcpus_[index]; }
  vmm::SynicPorts& synic() override { return *synic_; }
  vmm::DirtyTracker& dirty_tracker() override { return dirty_log_; }
  vmm::InterruptLine& interrupt_line(uint32_t gsi) override;

  // StateUnit
  std::string_view unit_name() const override { return "hypervisor"; }
  void Reset() override;
  vmm::Result<std::string> Save() override;
  vmm::Result<void> Restore(uint32_t schema_version, std::string_view state) override;
  void VisitCounters(const vmm::CounterVisitor& visit) const override;

 private:
  class Line;

  KvmVm(SystemFd system, VmFd vm, vmm::GuestMemory& memory);
  vmm::Result<void> Build(const Options& options, vmm::Loop& loop);
  vmm::Result<void> AddVcpus(uint32_t count);
  vmm::Result<void> RouteInterrupts(uint32_t vcpu_count);
  vmm::Result<std::vector<uint32_t>> MsrsToSave() const;
  vmm::Result<void> SaveTo(state::Hypervisor* state) const;
  vmm::Result<void> RestoreFrom(const state::Hypervisor& state, bool with_time);

  SystemFd system_;
  VmFd vm_;
  vmm::GuestMemory& memory_;
  DirtyLog dirty_log_;
  CrashRegisters crash_;
  KvmVcpu::Shared shared_{};
  std::vector<std::unique_ptr<KvmVcpu>> vcpus_;
  std::unique_ptr<KvmSynic> synic_;  // after vcpus_: it pokes them
  std::vector<std::unique_ptr<Line>> lines_;
  state::Hypervisor power_on_;  ///< what Reset restores
};

}  // namespace kvmbus::kvm
