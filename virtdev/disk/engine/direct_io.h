// SPDX-License-Identifier: Apache-2.0
/// \file
/// I/O past the host's page cache: what a file wants of it, and calls that take any buffer.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>

#include "vmm/result/result.h"

namespace kvmbus::virtdev {

/// What the memory and the place of each piece of a transfer must be multiples of. Powers of two,
/// at most AlignedBuffer::kAlignment.
struct IoAlignment {
  uint32_t memory = 1;
  uint32_t bytes = 1;  ///< of offset and length

  bool is_none() const { return memory == 1 && bytes == 1; }
};

class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 4096;
  /// A multiple of kAlignment.
  explicit AlignedBuffer(size_t bytes)
      : data_(static_cast<uint8_t*>(std::aligned_alloc(kAlignment, bytes))), bytes_(bytes) {
    KVMBUS_ASSERT(data_ != nullptr);
  }
  std::span<uint8_t> span() { return {data_.get(), bytes_}; }

 private:
  struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
  };
  std::unique_ptr<uint8_t, Free> data_;
  size_t bytes_;
};

/// Turns O_DIRECT on for an open file whose users transfer whole sectors of `sector_bytes`. All of
/// its I/O goes one way: a page that the cache filled while a direct write beside it was under way
/// would bring back what that write replaced. So kUnimplemented, with the reason, and nothing is
/// changed, where the host wants larger units than a sector: parts of them would have to be read
/// first, with no write beside them.
vmm::Result<IoAlignment> TurnDirect(int fd, uint32_t sector_bytes);

// As PReadAll and PWriteAll, on a file that TurnDirect has turned. Parts of units are read first:
// their writers are the caller's to keep apart.
vmm::Result<void> DirectRead(int fd, const IoAlignment& alignment, std::span<uint8_t> buffer,
                             uint64_t offset);
vmm::Result<void> DirectWrite(int fd, const IoAlignment& alignment, std::span<const uint8_t> buffer,
                              uint64_t offset);

}  // namespace kvmbus::virtdev
