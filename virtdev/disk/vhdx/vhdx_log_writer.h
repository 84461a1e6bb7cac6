// SPDX-License-Identifier: Apache-2.0
/// \file
/// LogWriter: appends entries to the VHDX log and knows which of them still matter.
/// Reference: [MS-VHDX] section 2.3.
#pragma once

#include <cstdint>
#include <deque>
#include <span>

#include "virtdev/disk/block_file.h"
#include "virtdev/disk/vhdx/vhdx_format.h"

namespace kvmbus::virtdev::vhdx {

/// One session, one log GUID. Home: under the owner's lock. The life of an entry: Append, a flush
/// that makes it durable, its pages written in place, Applied, one more flush, Flushed: from then
/// on the tail of later entries leaves it behind. Its space serves again when such an entry is
/// durable, and not before: the last durable entry, which a power cut makes the one that counts,
/// leads to all from its own tail on. Hence the room is what lies outside of the last entry's tail
/// and its end; and where that is too little, an empty entry whose tail is itself makes it all but
/// one sector. The caller flushes each entry before it appends the next.
class LogWriter {
 public:
  LogWriter(BlockFile& file, uint64_t offset, uint32_t length, const vmm::Guid& guid)
      : file_(file), offset_(offset), length_(length), guid_(guid) {}

  struct Page {
    uint64_t file_offset;              ///< 4096-byte aligned
    std::span<const uint8_t> content;  ///< 4096 bytes
  };

  /// As many pages as one entry takes, so that two of them fit into the smallest log.
  static constexpr size_t kMaxPages = 120;

  /// Whether an entry of so many pages fits without touching those that a power cut brings back,
  /// and an empty one behind it. Always, for the first entry behind an empty one that was appended
  /// while all older ones were applied and flushed; and for an empty one itself.
  bool HasRoom(size_t pages) const;
  /// Writes an entry; it is not flushed. `flushed_bytes` of the file are known to be durable,
  /// `file_bytes` are what the pages' structures need. Only with HasRoom.
  vmm::Result<void> Append(std::span<const Page> pages, uint64_t flushed_bytes,
                           uint64_t file_bytes);
  /// The pages of all entries so far are written in place.
  void Applied();
  /// The file was flushed since the last Applied.
  void Flushed();

 private:
  struct LiveEntry {
    uint32_t start;
    bool applied;
  };

  vmm::Result<void> WriteEntry(std::span<const uint8_t> bytes);

  BlockFile& file_;
  const uint64_t offset_;
  const uint32_t length_;
  const vmm::Guid guid_;
  uint32_t head_ = 0;  // where the next entry starts, within the log
  uint32_t tail_ = 0;  // of the last entry
  uint64_t sequence_ = 1;
  std::deque<LiveEntry> live_;  // oldest first
};

}  // namespace kvmbus::virtdev::vhdx
