// SPDX-License-Identifier: Apache-2.0
/// \file
/// The guest crash MSRs, kept here instead of in KVM: KVM never offers the bit by which Linux hands
/// over its panic message. Reference: TLFS, HV_X64_MSR_CRASH_P0..P4 and HV_X64_MSR_CRASH_CTL.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>

#include "kvm/cpu/hyperv_leaves.h"
#include "vmm/hypervisor/vm.h"
#include "vmm/memory/guest_memory.h"

namespace kvmbus::kvm {

/// Partition-wide; any vCPU thread.
class CrashRegisters {
 public:
  static constexpr uint32_t kFirstMsr = kMsrCrashP0;
  static constexpr uint32_t kMsrCount = 6;
  static constexpr size_t kMessageLimit = 4096;
  static bool Owns(uint32_t msr) { return msr >= kFirstMsr && msr < kFirstMsr + kMsrCount; }

  explicit CrashRegisters(const vmm::GuestMemory& memory) : memory_(memory) {}

  uint64_t Read(uint32_t msr) const {
    std::lock_guard lock(mutex_);
    return msr == kMsrCrashCtl ? kCrashNotify | kCrashMessage : parameters_[msr - kFirstMsr];
  }

  /// The report, if this write is the guest's notification.
  std::optional<vmm::GuestCrashReport> Write(uint32_t msr, uint64_t value) {
    std::lock_guard lock(mutex_);
    if (msr != kMsrCrashCtl) {
      parameters_[msr - kFirstMsr] = value;
      return std::nullopt;
    }
    if (!(value & kCrashNotify)) return std::nullopt;
    vmm::GuestCrashReport report{parameters_, {}};
    if (value & kCrashMessage) {
      report.message.resize(std::min<uint64_t>(parameters_[4], kMessageLimit));
      if (!memory_.Read(parameters_[3], report.message.data(), report.message.size()))
        report.message.clear();
    }
    return report;
  }

  std::array<uint64_t, 5> parameters() const {
    std::lock_guard lock(mutex_);
    return parameters_;
  }
  void set_parameters(const std::array<uint64_t, 5>& parameters) {
    std::lock_guard lock(mutex_);
    parameters_ = parameters;
  }

 private:
  const vmm::GuestMemory& memory_;
  mutable std::mutex mutex_;
  std::array<uint64_t, 5> parameters_{};
};

}  // namespace kvmbus::kvm
