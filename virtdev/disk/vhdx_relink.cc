// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx_relink.h"

#include <algorithm>
#include <optional>

#include "virtdev/disk/vhdx_journal.h"
#include "virtdev/disk/vhdx_locator.h"

namespace kvmbus::virtdev::vhdx {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

uint32_t WholePages(size_t bytes) {
  return static_cast<uint32_t>((bytes + kLogSector - 1) / kLogSector * kLogSector);
}

/// The table of a metadata region, which was found sound when the file was opened.
class MetadataTable {
 public:
  explicit MetadataTable(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {
    const auto head = Load<MetadataTableHeader>(bytes_, 0);
    for (size_t i = 0; i < head.entry_count; ++i)
      entries_.push_back(Load<MetadataTableEntry>(bytes_, PlaceOf(i)));
  }

  std::optional<size_t> FindLocator() const {
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i].item_id == kParentLocatorItem && !(entries_[i].flags & kMetadataIsUser))
        return i;
    }
    return std::nullopt;
  }

  /// The first whole pages that no item but `own` lies in; nullopt if there are none below `limit`.
  std::optional<uint32_t> FindRoom(uint32_t length, size_t own, uint32_t limit) const {
    std::vector<uint32_t> candidates = {kMetadataTableBytes};
    for (const MetadataTableEntry& entry : entries_)
      candidates.push_back(WholePages(size_t{entry.offset} + entry.length));
    std::sort(candidates.begin(), candidates.end());
    for (const uint32_t start : candidates) {
      if (start < kMetadataTableBytes || start > limit || length > limit - start) continue;
      if (IsFree(start, length, own)) return start;
    }
    return std::nullopt;
  }

  /// Moves an item; the page of the table that says so, and its place in the region.
  std::pair<uint32_t, std::vector<uint8_t>> Move(size_t index, uint32_t offset, uint32_t length) {
    entries_[index].offset = offset;
    entries_[index].length = length;
    Store(bytes_, PlaceOf(index), entries_[index]);
    const auto page = static_cast<uint32_t>(PlaceOf(index) / kLogSector * kLogSector);
    const auto begin = bytes_.begin() + page;
    return {page, {begin, begin + kLogSector}};
  }

 private:
  static size_t PlaceOf(size_t index) {
    return sizeof(MetadataTableHeader) + index * sizeof(MetadataTableEntry);
  }
  bool IsFree(uint32_t start, uint32_t length, size_t own) const {
    for (size_t i = 0; i < entries_.size(); ++i) {
      const MetadataTableEntry& entry = entries_[i];
      if (i != own && entry.length != 0 && entry.offset < start + length &&
          start < entry.offset + entry.length)
        return false;
    }
    return true;
  }

  std::vector<uint8_t> bytes_;
  std::vector<MetadataTableEntry> entries_;
};

}  // namespace

Result<void> ReplaceParentLocator(const VhdxFile& vhdx, const ParentReference& parent) {
  std::vector<uint8_t> item = TRY(BuildParentLocator(parent));
  const auto length = static_cast<uint32_t>(item.size());
  const Region& region = vhdx.regions.metadata;
  std::vector<uint8_t> bytes(kMetadataTableBytes);
  TRY_VOID_CTX(vhdx.file->Read(bytes, region.offset), "reading the metadata table");
  MetadataTable table(std::move(bytes));
  const auto index = table.FindLocator();
  if (!index) return MakeError(Code::kFailedPrecondition, "it is no differencing disk");
  item.resize(WholePages(length), 0);
  const auto room = table.FindRoom(static_cast<uint32_t>(item.size()), *index, region.length);
  if (!room)
    return MakeError(Code::kOutOfRange,
                     "its metadata region of {} KiB has no room for a parent locator of {} bytes: "
                     "use a shorter path",
                     region.length / 1024, length);
  std::vector<Journal::Page> pages;
  auto [page, content] = table.Move(*index, *room, length);
  pages.push_back({region.offset + page, std::move(content)});
  Journal::AppendPages(region.offset + *room, item, &pages);
  Journal journal(*vhdx.file, vhdx.header);
  TRY_VOID(journal.Open(false));
  TRY_VOID(journal.Commit(pages, false));
  return journal.Close();
}

}  // namespace kvmbus::virtdev::vhdx
