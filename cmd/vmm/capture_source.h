// SPDX-License-Identifier: Apache-2.0
/// \file
/// CaptureSource: what a capture needs of a machine and its disks.
#pragma once

#include <functional>
#include <string>

#include "vmm/machine/machine.h"

namespace kvmbus::cmd {

/// Home: the main loop, but for FinishLoading.
class CaptureSource {
 public:
  virtual ~CaptureSource() = default;
  virtual vmm::Machine& machine() = 0;
  virtual const std::string& fdt() const = 0;
  /// Waits until all memory of a restored machine is there. Any thread.
  virtual void FinishLoading() = 0;
  /// What makes a child of the disk, as far as it can be made while the guest runs: to be called
  /// once, by any thread.
  using MakeChild = std::function<vmm::Result<void>()>;
  virtual vmm::Result<MakeChild> ChildMaker(uint32_t controller, uint32_t lun,
                                            const std::string& path) = 0;
  /// Of a stopped machine: the disk goes on in the child that was made.
  virtual vmm::Result<void> SwitchToChild(uint32_t controller, uint32_t lun) = 0;
  /// Of a stopped machine: what its disks were given is durable.
  virtual vmm::Result<void> FlushDisks() = 0;
};

}  // namespace kvmbus::cmd
