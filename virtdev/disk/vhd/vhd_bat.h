// SPDX-License-Identifier: Apache-2.0
/// \file
/// BlockTable: a VHD's BAT in memory, four bytes an entry.
#pragma once

#include <atomic>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

#include "virtdev/disk/vhd/vhd_file.h"

namespace kvmbus::virtdev::vhd {

/// Get: any thread, without a lock. The rest: under the owner's lock.
class BlockTable {
 public:
  static constexpr uint64_t kPageBytes = 4096;

  /// kDataLoss if a block lies outside the file or over something else.
  static vmm::Result<BlockTable> Read(const VhdFile& vhd);

  /// Where the block's bitmap lies, its data behind it; 0: nowhere.
  uint64_t Get(uint64_t block) const {
    return uint64_t{Slot(block).load(std::memory_order_acquire)} * kSector;
  }
  void Set(uint64_t block, uint64_t offset) {
    Slot(block).store(static_cast<uint32_t>(offset / kSector), std::memory_order_release);
  }
  /// Which 4 KiB page of the file a block's entry is in.
  uint64_t PageOf(uint64_t block) const { return (offset_ + block * 4) / kPageBytes; }

  struct Part {
    uint64_t file_offset;
    std::vector<uint8_t> bytes;
  };
  /// The part of such a page that belongs to the BAT, as it is stored in the file.
  Part CopyPage(uint64_t page) const;
  /// Entries of the disk that have a block.
  uint64_t CountPresent() const;
  /// Where the last part of the file that has an owner ends.
  uint64_t end_of_use() const { return end_of_use_; }

 private:
  struct Free {
    void operator()(uint32_t* entries) const { std::free(entries); }
  };

  BlockTable(uint64_t offset, uint64_t count, uint64_t blocks);
  std::atomic_ref<uint32_t> Slot(uint64_t index) const {
    return std::atomic_ref<uint32_t>(entries_[index]);
  }
  vmm::Result<void> AddPiece(const VhdFile& vhd, uint64_t first, std::span<const uint8_t> bytes,
                             std::vector<uint32_t>* starts);
  vmm::Result<void> CheckDisjoint(const VhdFile& vhd, std::vector<uint32_t> starts);
  uint64_t OwnerOf(uint32_t start, uint64_t nth) const;

  uint64_t offset_;  // of the BAT in the file
  uint64_t count_;   // of entries; those past the disk's end own space too
  uint64_t blocks_;  // of the disk
  uint64_t end_of_use_ = 0;
  std::unique_ptr<uint32_t[], Free> entries_;  // sectors; from calloc: untouched pages are free
};

}  // namespace kvmbus::virtdev::vhd
