// SPDX-License-Identifier: Apache-2.0
/// \file
/// Journal: changes of a VHDX file's metadata, made so that a crash leaves all of a batch or
/// nothing. It owns the header, the log and the order of writes and flushes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "virtdev/disk/vhdx/vhdx_header.h"
#include "virtdev/disk/vhdx/vhdx_log_writer.h"

namespace kvmbus::virtdev::vhdx {

/// Home: under the owner's lock (the image's flush lock).
class Journal {
 public:
  /// `next_data_guid`: the data write GUID of the first change of data; zero: a random one.
  Journal(BlockFile& file, const ActiveHeader& header, const vmm::Guid& next_data_guid = {})
      : file_(file), header_(header), next_data_guid_(next_data_guid) {}

  struct Page {
    uint64_t file_offset;
    std::vector<uint8_t> content;  ///< 4096 bytes
  };

  /// Appends `bytes`, whole pages that belong at `file_offset`, as pages of a commit.
  static void AppendPages(uint64_t file_offset, std::span<const uint8_t> bytes,
                          std::vector<Page>* pages);

  bool is_open() const { return log_ != nullptr; }
  /// Writes the first log entry, then names the log in a header, both flushed; new write GUIDs say
  /// that the file changes, and `data_changes` that what a guest sees does.
  vmm::Result<void> Open(bool data_changes);
  /// All that was written before it is durable when it returns. After one failure it fails for
  /// ever: the host may have dropped what it could not write.
  vmm::Result<void> Flush();
  /// One log entry, durable when it returns; then the pages in place, which the next flush makes
  /// durable (if they cannot be written, the next commit tries again first). `flush_first`: the
  /// pages lead to data that must be durable before them. At most LogWriter::kMaxPages pages.
  vmm::Result<void> Commit(const std::vector<Page>& pages, bool flush_first);
  /// Puts in place what the last commit could not.
  vmm::Result<void> Apply();
  /// All that was committed is in place in the file, durable or not.
  bool is_applied() const { return unapplied_.empty(); }
  const vmm::Guid& data_write_guid() const { return header_.header.data_write_guid; }
  /// Everything is in place: flushes, and marks the log empty.
  vmm::Result<void> Close();

 private:
  vmm::Result<void> PublishHeader(const ActiveHeader& next);
  vmm::Result<void> CheckUsable() const;
  vmm::Result<void> MakeRoom();

  BlockFile& file_;
  ActiveHeader header_;
  const vmm::Guid next_data_guid_;
  std::unique_ptr<LogWriter> log_;
  bool data_guid_is_new_ = false;
  uint64_t flushed_bytes_ = 0;   // as much of the file is durable
  std::vector<Page> unapplied_;  // in the log, not yet in place
  bool failed_ = false;
};

}  // namespace kvmbus::virtdev::vhdx
