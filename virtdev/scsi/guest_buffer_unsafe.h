// SPDX-License-Identifier: Apache-2.0
/// \file
/// GuestBuffer: the scattered memory that one SCSI command moves data from or into.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <vector>

#include "vmm/memory/guest_memory.h"

namespace kvmbus::virtdev {

/// Guest pages as iovecs, neighbours merged. The guest may change the bytes at any moment: what a
/// decision hangs on is copied with CopyIn first. Home: the command's.
class GuestBuffer {
 public:
  void Clear();
  /// Appends `bytes` of the pages, beginning `offset` into the first. False, and nothing appended,
  /// if a page is not RAM or the pages are too few.
  [[nodiscard]] bool AppendPages(vmm::GuestMemory& memory, std::span<const uint64_t> pfns,
                                 uint32_t offset, uint32_t bytes);
  /// Appends one range of guest RAM. False, and nothing appended, if it is not RAM in one region.
  [[nodiscard]] bool AppendRange(vmm::GuestMemory& memory, uint64_t gpa, uint64_t bytes);
  /// Appends memory of the VMM's own (a PIO buffer, a test's).
  void AppendHost(std::span<uint8_t> bytes);
  /// Forgets what is beyond the first `bytes`.
  void Truncate(uint64_t bytes);

  uint64_t size() const { return size_; }
  std::span<const iovec> iov() const { return iov_; }
  /// Where each of iov() lies in the guest's memory; kNoGpa: it is the VMM's own.
  std::span<const uint64_t> gpas() const { return gpas_; }
  static constexpr uint64_t kNoGpa = ~uint64_t{0};

  /// Copies from or to `offset`, as much as both sides have; returns how much. CopyOut marks what
  /// it writes.
  size_t CopyIn(uint64_t offset, std::span<uint8_t> to) const;
  size_t CopyOut(uint64_t offset, std::span<const uint8_t> from);
  /// True if the bytes at `offset` equal `expected`; false if there are too few.
  bool Equals(uint64_t offset, std::span<const uint8_t> expected) const;
  /// Notes that the host wrote the first `bytes`.
  void MarkDirty(uint64_t bytes);

 private:
  void AppendSegment(uint8_t* host, uint64_t gpa, size_t bytes);
  /// Calls visit(host pointer, its GPA, bytes before it, bytes) for each piece of the range until
  /// it returns false; returns the bytes of the pieces for which it returned true.
  template <typename Visit>
  size_t ForEachPiece(uint64_t offset, size_t bytes, Visit visit) const;

  vmm::GuestMemory* memory_ = nullptr;  ///< null: the VMM's own memory, nothing to mark
  std::vector<iovec> iov_;
  std::vector<uint64_t> gpas_;  ///< of each iovec
  uint64_t size_ = 0;
};

}  // namespace kvmbus::virtdev
