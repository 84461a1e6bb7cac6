// SPDX-License-Identifier: Apache-2.0
/// \file
/// SectorBitmaps: which sectors of partly present blocks are in a differencing file. Reference:
/// [MS-VHDX] section 2.5.1.2.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "virtdev/disk/block_file.h"
#include "virtdev/disk/vhdx/vhdx_format.h"
#include "virtdev/disk/vhdx/vhdx_journal.h"

namespace kvmbus::virtdev::vhdx {

/// Bitmap blocks are read a page of 4 KiB (16 MiB of a disk with sectors of 512 bytes) at a time,
/// when it is asked for, and kept while there is room: kMaxClean pages and what waits to be
/// written. Any thread. A bitmap is named by its block's place in the file, which never changes
/// while the image is open; its bits are counted from the chunk's first sector.
class SectorBitmaps {
 public:
  static constexpr size_t kMaxClean = 128;
  /// More dirty pages than that should be written soon.
  static constexpr size_t kManyDirty = 512;
  static constexpr uint64_t kBitsAPage = kLogSector * 8;

  explicit SectorBitmaps(BlockFile& file) : file_(file) {}

  enum class Presence { kHere, kParent, kUnreadable };
  struct Run {
    Presence presence;
    uint64_t bits;
  };
  /// Appends what [first, first + count) is, as runs.
  void GetRuns(uint64_t bitmap, uint64_t first, uint64_t count, std::vector<Run>* runs);

  /// Marks sectors as present in the file. Cannot fail: a page that cannot be read now is read
  /// before it is written. False: as far as memory knows, all of them were marked before.
  bool Set(uint64_t bitmap, uint64_t first, uint64_t count);
  /// Clears bits that an earlier use of the block has left, so that they do not come back.
  vmm::Result<void> Clear(uint64_t bitmap, uint64_t first, uint64_t count);
  /// Whether all of them are set, as far as memory knows: false if it does not.
  bool KnowsAllSet(uint64_t bitmap, uint64_t first, uint64_t count);

  /// The pages that wait to be written, as they are now. They stay in memory until Written or
  /// Return. A failure takes none.
  vmm::Result<void> TakeDirty(std::vector<Journal::Page>* pages);
  /// Reads what TakeDirty would have to read, without keeping others out for as long.
  vmm::Result<void> LoadDirty();
  /// What was taken is in place in the file.
  void Written();
  /// These of the pages of one TakeDirty were not written; earlier ones may be.
  void Return(std::span<const Journal::Page> pages);
  size_t CountDirty();

 private:
  struct Page {
    uint64_t offset = 0;  // in the file
    bool loaded = false;  // otherwise it has what was set since, and not what the file has
    bool dirty = false;
    bool taken = false;  // and not yet in place
    std::vector<uint64_t> bits = std::vector<uint64_t>(kLogSector / 8);
  };
  using Pages = std::list<Page>;

  // All with mutex_ held.
  Page& Get(uint64_t offset);
  vmm::Result<void> LoadPage(Page& page);
  void MakeDirty(Page& page);
  void Shrink();

  BlockFile& file_;
  std::mutex mutex_;  // guards what follows
  Pages pages_;       // the one used last first
  std::unordered_map<uint64_t, Pages::iterator> by_offset_;
  size_t dirty_ = 0, taken_ = 0;
};

}  // namespace kvmbus::virtdev::vhdx
