// SPDX-License-Identifier: Apache-2.0
/// \file
/// IoBus: an address space (ports or MMIO) of device registers.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "vmm/device/device.h"
#include "vmm/os/counter.h"

namespace kvmbus::vmm {

/// Ranges are added before the first vCPU runs; accesses come from every vCPU thread. The bus takes
/// the device's lock around each access, so that two handlers of one device share its lock.
class IoBus {
 public:
  explicit IoBus(std::string name) : name_(std::move(name)) {}

  /// `lock` is the device's and outlives the bus. Refuses an overlap (kAlreadyExists, naming both).
  Result<void> Add(uint64_t base, uint64_t size, const std::string& owner, IoHandler& handler,
                   std::mutex& lock);

  /// An unclaimed address reads as all ones and swallows writes, as on real hardware. An access
  /// that reaches past the end of a range is unclaimed as a whole.
  uint64_t Read(uint64_t address, unsigned size);
  void Write(uint64_t address, unsigned size, uint64_t value);

  const Counter& unclaimed() const { return unclaimed_; }

 private:
  struct Range {
    uint64_t base;
    uint64_t size;
    std::string owner;
    IoHandler* handler;
    std::mutex* lock;
  };
  const Range* Find(uint64_t address, unsigned size) const;

  std::string name_;
  std::vector<Range> ranges_;  // by base
  Counter unclaimed_;
};

}  // namespace kvmbus::vmm
