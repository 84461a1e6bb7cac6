// SPDX-License-Identifier: Apache-2.0
/// \file
/// BlockTable: a BAT in memory, four bytes an entry. Reference: [MS-VHDX] section 2.5.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

#include "virtdev/disk/block_file.h"
#include "virtdev/disk/vhdx/vhdx_metadata.h"
#include "virtdev/disk/vhdx/vhdx_region.h"

namespace kvmbus::virtdev::vhdx {

/// Where a block is.
struct BlockPlace {
  BlockState state = kNotPresent;
  uint64_t file_offset = 0;  ///< 0: none; else of the block, or of the space that it once had

  /// All of it or some of it is in the file.
  bool present() const { return state == kFullyPresent || state == kPartiallyPresent; }
};

/// A part of the file that something owns; in MiB.
struct FileRange {
  uint64_t start = 0;
  uint64_t length = 0;
};

/// Any thread may Get; whoever Sets serialises that. Entries that were never set cost no memory.
class BlockTable {
 public:
  static constexpr uint64_t kEntriesAPage = kLogSector / 8;

  /// Reads the file's BAT and checks every entry: state, reserved bits, place, overlaps with each
  /// other and with `owned` (header area, log, regions). `used` gets all ranges in use, sorted. A
  /// block that has lost its data may remember its space; where that has another owner by now it
  /// forgets it.
  static vmm::Result<BlockTable> Read(BlockFile& file, const DiskMetadata& disk, const Region& bat,
                                      uint64_t file_bytes, std::vector<FileRange> owned,
                                      std::vector<FileRange>* used);

  BlockPlace Get(uint64_t block) const { return Unpack(Slot(BatIndex(block, ratio_)).load(kGet)); }
  void Set(uint64_t block, const BlockPlace& place) {
    Slot(BatIndex(block, ratio_)).store(Pack(place), std::memory_order_release);
  }
  /// The sector bitmap of a differencing disk's block, which it shares with its chunk. A partly
  /// present block has one.
  BlockPlace GetBitmap(uint64_t block) const { return Unpack(Slot(BitmapIndex(block)).load(kGet)); }
  void SetBitmap(uint64_t block, uint64_t file_offset) {
    Slot(BitmapIndex(block)).store(Pack({kFullyPresent, file_offset}), std::memory_order_release);
  }
  /// The same for a larger disk.
  vmm::Result<BlockTable> Grown(const DiskMetadata& disk) const;
  /// Which 4 KiB page of the BAT region a block's entry is in, and its bitmap's: the same or a
  /// later one.
  uint64_t PageOf(uint64_t block) const { return BatIndex(block, ratio_) / kEntriesAPage; }
  uint64_t BitmapPageOf(uint64_t block) const { return BitmapIndex(block) / kEntriesAPage; }
  /// A page as the file holds it.
  std::vector<uint8_t> CopyPage(uint64_t page) const;
  uint64_t CountPresent() const;

 private:
  static constexpr std::memory_order kGet = std::memory_order_acquire;
  struct Free {
    void operator()(uint32_t* entries) const { std::free(entries); }
  };

  /// The space that an unmapped block remembers.
  struct Anchor {
    FileRange range;
    uint64_t index;  // in the BAT
  };

  BlockTable(uint64_t entries, uint64_t ratio);
  static uint32_t Pack(const BlockPlace& place) {
    return static_cast<uint32_t>(place.file_offset / kMiB) << 3 |
           static_cast<uint32_t>(place.state);
  }
  static BlockPlace Unpack(uint32_t entry) {
    return {static_cast<BlockState>(entry & 7), uint64_t{entry >> 3} * kMiB};
  }
  std::atomic_ref<uint32_t> Slot(uint64_t index) const {
    return std::atomic_ref<uint32_t>(entries_[index]);
  }
  bool IsBitmap(uint64_t index) const { return index % (ratio_ + 1) == ratio_; }
  uint64_t BitmapIndex(uint64_t block) const { return block / ratio_ * (ratio_ + 1) + ratio_; }
  vmm::Result<void> AddPage(uint64_t first_index, std::span<const uint8_t> bytes,
                            uint64_t file_bytes, const DiskMetadata& disk,
                            std::vector<FileRange>* used, std::vector<Anchor>* anchors);
  vmm::Result<void> CheckBitmaps() const;
  void KeepSoundAnchors(std::vector<Anchor> anchors, std::vector<FileRange>* used);
  std::string OwnerOf(uint64_t start, uint64_t nth) const;

  uint64_t count_;
  uint64_t ratio_;
  std::unique_ptr<uint32_t[], Free> entries_;  // whole pages, from calloc: untouched ones are free
};

}  // namespace kvmbus::virtdev::vhdx
