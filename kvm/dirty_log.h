// SPDX-License-Identifier: Apache-2.0
/// \file
/// DirtyLog: the VM's memory slots, and KVM's note of what the guest writes there. Reference:
/// Linux, Documentation/virt/kvm/api.rst, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
#pragma once

#include <vector>

#include "kvm/uapi/kvm_fds.h"
#include "vmm/hypervisor/dirty_tracker.h"
#include "vmm/memory/guest_memory.h"

namespace kvmbus::kvm {

/// The log with manual protection: taking it is a copy, and pages are protected again a few at a
/// time, so that the guest is never held up for long, however large it is. The dirty ring would
/// save the copy of the bitmap, 32 KiB a GiB, and costs every processor a share of memory.
class DirtyLog final : public vmm::DirtyTracker {
 public:
  DirtyLog(const VmFd& vm, const vmm::GuestMemory& memory) : vm_(vm), memory_(memory) {}

  /// Gives the regions to KVM, once.
  vmm::Result<void> AddMemory();

  // DirtyTracker
  vmm::Result<void> StartTracking() override;
  vmm::Result<void> TakeDirtyPages(vmm::PageSet* pages, bool last) override;
  void StopTracking() override;

 private:
  vmm::Result<void> SetSlots(uint32_t flags) const;
  vmm::Result<void> Protect(uint32_t slot, std::span<const uint64_t> pages) const;

  const VmFd& vm_;
  const vmm::GuestMemory& memory_;
};

}  // namespace kvmbus::kvm
