// SPDX-License-Identifier: Apache-2.0
/// \file
/// How guest memory lies in a file: blocks of 1 MiB, numbered as they follow each other in the
/// memory file; a block that is zero has no place. One may be compressed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "vmm/memory/guest_memory.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

inline constexpr uint64_t kRamBlockBytes = 1u << 20;
inline constexpr uint64_t kRamBlockPages = kRamBlockBytes / kPageSize;

/// How many blocks are protected and loaded together: those of a huge page, else one.
inline uint64_t BlocksTogether(const GuestMemory& memory) {
  return std::max<uint64_t>(1, memory.host_page_bytes() / kRamBlockBytes);
}

/// Where blocks go. Any thread; one at a time for a block.
class RamTarget {
 public:
  virtual ~RamTarget() = default;
  virtual int fd() const = 0;
  /// The same file past the host's cache, for much at once; -1: it cannot be had so.
  virtual int direct_fd() const { return -1; }
  virtual bool HasPlace(uint64_t block) const = 0;
  /// The offset of the block in the file, 4 KiB aligned; what is not written there reads as zeroes.
  virtual Result<uint64_t> Place(uint64_t block) = 0;
  /// Stores a whole block in its compressed form (block_codec.h). The block has no place yet, or
  /// was compressed before. A later Place gives it a new place, with nothing of it there.
  virtual Result<void> PutCompressed(uint64_t block, std::span<const uint8_t> bytes) = 0;
  virtual bool IsCompressed(uint64_t block) const = 0;
};

/// Where a block is in a file.
struct RamPlace {
  uint64_t offset = 0;
  uint32_t compressed_bytes = 0;  ///< 0: it is there as it is
};

/// Where blocks come from.
struct RamSource {
  Fd file;
  std::vector<std::optional<RamPlace>> places;  ///< of each block of the memory
};

}  // namespace kvmbus::vmm
