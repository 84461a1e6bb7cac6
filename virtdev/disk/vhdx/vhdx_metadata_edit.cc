// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_metadata_edit.h"

#include <algorithm>

namespace kvmbus::virtdev::vhdx {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::Result;

uint32_t WholePages(size_t bytes) {
  return static_cast<uint32_t>((bytes + kLogSector - 1) / kLogSector * kLogSector);
}

size_t PlaceOf(size_t index) {
  return sizeof(MetadataTableHeader) + index * sizeof(MetadataTableEntry);
}

}  // namespace

MetadataEditor::MetadataEditor(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {
  const auto head = Load<MetadataTableHeader>(bytes_, 0);
  for (size_t i = 0; i < head.entry_count; ++i)
    entries_.push_back(Load<MetadataTableEntry>(bytes_, PlaceOf(i)));
}

Result<MetadataEditor> MetadataEditor::Read(const VhdxFile& vhdx) {
  std::vector<uint8_t> bytes(kMetadataTableBytes);
  TRY_VOID_CTX(vhdx.file->Read(bytes, vhdx.regions.metadata.offset), "reading the metadata table");
  return MetadataEditor(std::move(bytes));
}

std::optional<size_t> MetadataEditor::Find(const vmm::Guid& item_id) const {
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].item_id == item_id && !(entries_[i].flags & kMetadataIsUser)) return i;
  }
  return std::nullopt;
}

std::optional<uint32_t> MetadataEditor::FindRoom(uint32_t length, size_t own,
                                                 uint32_t limit) const {
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

std::pair<uint32_t, std::vector<uint8_t>> MetadataEditor::Move(size_t index, uint32_t offset,
                                                               uint32_t length) {
  entries_[index].offset = offset;
  entries_[index].length = length;
  Store(bytes_, PlaceOf(index), entries_[index]);
  const auto page = static_cast<uint32_t>(PlaceOf(index) / kLogSector * kLogSector);
  const auto begin = bytes_.begin() + page;
  return {page, {begin, begin + kLogSector}};
}

bool MetadataEditor::IsFree(uint32_t start, uint32_t length, size_t own) const {
  for (size_t i = 0; i < entries_.size(); ++i) {
    const MetadataTableEntry& entry = entries_[i];
    if (i != own && entry.length != 0 && entry.offset < start + length &&
        start < entry.offset + entry.length)
      return false;
  }
  return true;
}

Result<Journal::Page> DiskSizePage(const VhdxFile& vhdx, uint64_t disk_bytes) {
  const MetadataEditor table = TRY(MetadataEditor::Read(vhdx));
  const auto index = table.Find(kVirtualDiskSizeItem);
  if (!index) return Error(Code::kDataLoss, "the metadata have no virtual disk size");
  const uint64_t offset = vhdx.regions.metadata.offset + table.OffsetOf(*index);
  const uint64_t in_page = offset % kLogSector;
  if (in_page > kLogSector - sizeof(disk_bytes))
    return Error(Code::kUnimplemented, "its size lies across two pages of the metadata");
  Journal::Page page{offset - in_page, std::vector<uint8_t>(kLogSector)};
  TRY_VOID_CTX(vhdx.file->Read(page.content, page.file_offset), "reading the metadata");
  Store(page.content, in_page, disk_bytes);
  return page;
}

}  // namespace kvmbus::virtdev::vhdx
