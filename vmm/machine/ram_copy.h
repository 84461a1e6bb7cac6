// SPDX-License-Identifier: Apache-2.0
/// \file
/// RamCopy: the whole RAM of a VM put aside in this process, zero pages left out. For a pulse.
#pragma once

#include <cstdint>
#include <vector>

#include "vmm/memory/guest_memory.h"

namespace kvmbus::vmm {

/// The machine is stopped throughout.
class RamCopy {
 public:
  static Result<RamCopy> Take(const GuestMemory& memory);
  /// All of the guest's RAM reads as zero; the host has it back, unless it is of huge pages.
  static Result<void> Clear(GuestMemory& memory);
  /// Writes the copy back; the RAM was cleared before.
  Result<void> PutBack(GuestMemory& memory) const;

 private:
  static Result<void> Overwrite(GuestMemory& memory);
  Result<void> Append(const GuestMemory& memory, const MemoryRange& range);

  Fd file_;
  std::vector<uint64_t> pfns_;  ///< page i of the file
};

}  // namespace kvmbus::vmm
