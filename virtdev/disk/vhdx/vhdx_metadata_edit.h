// SPDX-License-Identifier: Apache-2.0
/// \file
/// MetadataEditor: the table of a metadata region that was found sound when its file was opened,
/// and changes of its items, as pages of a commit.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "virtdev/disk/vhdx/vhdx_file.h"
#include "virtdev/disk/vhdx/vhdx_journal.h"

namespace kvmbus::virtdev::vhdx {

/// Home: whoever made it.
class MetadataEditor {
 public:
  static vmm::Result<MetadataEditor> Read(const VhdxFile& vhdx);

  /// A system item's index in the table.
  std::optional<size_t> Find(const vmm::Guid& item_id) const;
  /// Where it begins in the region, in bytes.
  uint32_t OffsetOf(size_t index) const { return entries_[index].offset; }
  /// The first whole pages that no item but `own` lies in; nullopt if there are none below `limit`.
  std::optional<uint32_t> FindRoom(uint32_t length, size_t own, uint32_t limit) const;
  /// Moves an item. Returns the changed page of the table, and before it its offset in the region.
  std::pair<uint32_t, std::vector<uint8_t>> Move(size_t index, uint32_t offset, uint32_t length);

 private:
  explicit MetadataEditor(std::vector<uint8_t> bytes);
  bool IsFree(uint32_t start, uint32_t length, size_t own) const;

  std::vector<uint8_t> bytes_;
  std::vector<MetadataTableEntry> entries_;
};

/// The page that holds the disk's size, changed to `disk_bytes`.
vmm::Result<Journal::Page> DiskSizePage(const VhdxFile& vhdx, uint64_t disk_bytes);

}  // namespace kvmbus::virtdev::vhdx
