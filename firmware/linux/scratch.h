// SPDX-License-Identifier: Apache-2.0
/// \file
/// Scratch: memory for a moment, mapped and unmapped, so that a boot leaves nothing in the heap of
/// a worker that then runs for months.
#pragma once

#include <lzma.h>

#include <cstdint>
#include <span>

namespace kvmbus::firmware {

class Scratch {
 public:
  explicit Scratch(size_t size);
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();
  /// Zero at first.
  std::span<uint8_t> bytes() const { return bytes_; }

 private:
  std::span<uint8_t> bytes_;
};

/// liblzma's dictionary is tens of megabytes; here each allocation is a mapping.
lzma_allocator ScratchLzmaAllocator();

}  // namespace kvmbus::firmware
