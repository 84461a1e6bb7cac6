// SPDX-License-Identifier: Apache-2.0
/// \file
/// Sector bitmaps: which sectors of its blocks a VHD file has.
#pragma once

#include <atomic>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "virtdev/disk/block_file.h"

namespace kvmbus::virtdev::vhd {

/// One block's, most significant bit first. Reading it: any thread, without a lock.
class SectorBitmap {
 public:
  /// All bits set, and no memory.
  SectorBitmap() = default;
  explicit SectorBitmap(std::vector<uint8_t> bits) : bits_(std::move(bits)) {}

  bool Get(uint64_t sector) const {
    return bits_.empty() || (Byte(sector / 8) & Mask(sector)) != 0;
  }
  /// How many sectors from `first` on, at most `count`, have this value.
  uint64_t Run(uint64_t first, uint64_t count, bool value) const;
  bool AllSet(uint64_t first, uint64_t count) const { return Run(first, count, true) == count; }
  /// Under the owner's lock. A reader that sees a bit set also sees the data written before it.
  void Set(uint64_t first, uint64_t count);
  std::vector<uint8_t> Copy() const;

 private:
  static uint8_t Mask(uint64_t sector) { return static_cast<uint8_t>(0x80 >> sector % 8); }
  uint8_t Byte(uint64_t index) const {
    return std::atomic_ref<uint8_t>(bits_[index]).load(std::memory_order_acquire);
  }

  mutable std::vector<uint8_t> bits_;  // never grows; mutable, for an atomic_ref takes no const
};

/// Each is read when its block is first used, which may wait for the host's disk, and then stays in
/// memory unless it is all ones. Any thread.
class SectorBitmaps {
 public:
  static vmm::Result<std::unique_ptr<SectorBitmaps>> Create(BlockFile& file, uint64_t blocks,
                                                            uint32_t block_bytes);

  /// Of a block whose bitmap lies at `file_offset`.
  vmm::Result<SectorBitmap*> Get(uint64_t block, uint64_t file_offset);
  /// Of a block that is new: nothing is there, or everything.
  void AddNew(uint64_t block, bool all_set);

 private:
  struct Free {
    void operator()(SectorBitmap** bitmaps) const { std::free(bitmaps); }
  };
  SectorBitmaps(BlockFile& file, uint64_t blocks, uint32_t block_bytes);
  std::atomic_ref<SectorBitmap*> Slot(uint64_t block) const {
    return std::atomic_ref<SectorBitmap*>(bitmaps_[block]);
  }

  BlockFile& file_;
  const uint32_t bitmap_bytes_;
  const uint64_t block_sectors_;
  SectorBitmap all_set_;
  std::unique_ptr<SectorBitmap*[], Free> bitmaps_;  // from calloc: null until used
  std::mutex mutex_;                                // guards owned_, and changes of bitmaps_
  std::deque<SectorBitmap> owned_;
};

}  // namespace kvmbus::virtdev::vhd
