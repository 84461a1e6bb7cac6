// SPDX-License-Identifier: Apache-2.0
/// \file
/// Userfault: page faults of this process's memory, and of the kernel on its behalf (KVM, I/O),
/// handed to a thread of ours: userfaultfd(2).
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "vmm/os/fd.h"

namespace kvmbus::vmm {

/// Any thread. Ranges are page-aligned host addresses; a closed descriptor lets all go on.
class Userfault {
 public:
  enum class Kind { kMissing, kWriteProtect };
  struct Fault {
    uint64_t address;  ///< of the page
    Kind kind;
  };

  /// For memory of memfds whose pages have `page_bytes`; all ranges must be multiples of it.
  /// kUnimplemented or kPermissionDenied: the kernel does not let us, with the remedy.
  static Result<Userfault> Create(uint64_t page_bytes);

  Result<void> Register(uint64_t address, uint64_t size, Kind kind) const;
  /// Lifts what is protected, and lets waiting faults go on.
  Result<void> Unregister(uint64_t address, uint64_t size) const;
  Result<void> WriteProtect(uint64_t address, uint64_t size) const;
  /// Lets the faults that wait there go on.
  Result<void> Unprotect(uint64_t address, uint64_t size) const;
  /// Gives the missing pages at `address` the content; those that are there stay. Lets the faults
  /// that wait there go on.
  Result<void> Fill(uint64_t address, std::span<const uint8_t> pages) const;
  /// Not for huge pages.
  Result<void> FillZero(uint64_t address, uint64_t size) const;
  Result<void> Wake(uint64_t address, uint64_t size) const;

  /// Waits for a fault; nullopt once `stop` (an eventfd) is signalled.
  std::optional<Fault> Wait(int stop) const;

 private:
  Userfault(Fd fd, uint64_t page_bytes) : fd_(std::move(fd)), page_bytes_(page_bytes) {}
  Result<void> FillWith(uint64_t address, uint64_t size, const uint8_t* pages) const;

  Fd fd_;
  uint64_t page_bytes_;
};

}  // namespace kvmbus::vmm
