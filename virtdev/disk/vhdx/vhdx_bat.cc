// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_bat.h"

#include <algorithm>

namespace kvmbus::virtdev::vhdx {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

constexpr uint64_t kReadBytes = 256u << 10;

uint64_t WholePages(uint64_t entries) {
  return (entries + BlockTable::kEntriesAPage - 1) / BlockTable::kEntriesAPage *
         BlockTable::kEntriesAPage;
}

}  // namespace

BlockTable::BlockTable(uint64_t entries, uint64_t ratio)
    : count_(entries),
      ratio_(ratio),
      entries_(static_cast<uint32_t*>(std::calloc(WholePages(entries), sizeof(uint32_t)))) {}

Result<BlockTable> BlockTable::Read(BlockFile& file, const DiskMetadata& disk, const Region& bat,
                                    uint64_t file_bytes, std::vector<FileRange> owned,
                                    std::vector<FileRange>* used) {
  const uint64_t count = disk.bat_entries();
  if (count * 8 > bat.length)
    return MakeError(Code::kDataLoss,
                     "the BAT of {} MiB is too small for the {} blocks of the disk",
                     bat.length / kMiB, disk.blocks());
  if (file_bytes > kMaxFileBytes)
    return MakeError(Code::kUnimplemented, "a file of {} TiB; this version takes 512",
                     file_bytes >> 40);
  // The region lies within the file: the file's own size justifies this much memory.
  BlockTable table(count, disk.chunk_ratio());
  if (!table.entries_)
    return MakeError(Code::kResourceExhausted, "no memory for a BAT of {} entries", count);
  used->clear();
  std::vector<Anchor> anchors;
  std::vector<uint8_t> buffer(std::min(kReadBytes, WholePages(count) * 8));
  for (uint64_t index = 0; index < count; index += kReadBytes / 8) {
    const uint64_t bytes = std::min<uint64_t>(buffer.size(), (count - index) * 8);
    const auto part = std::span(buffer).first(bytes);
    TRY_VOID_CTX(file.Read(part, bat.offset + index * 8), "reading the BAT");
    TRY_VOID(table.AddPage(index, part, file_bytes, disk, used, &anchors));
  }
  if (disk.has_parent) TRY_VOID(table.CheckBitmaps());
  used->insert(used->end(), owned.begin(), owned.end());
  std::sort(used->begin(), used->end(),
            [](const FileRange& a, const FileRange& b) { return a.start < b.start; });
  for (size_t i = 1; i < used->size(); ++i) {
    const FileRange &a = (*used)[i - 1], &b = (*used)[i];
    if (a.start + a.length > b.start)
      return MakeError(Code::kDataLoss, "{} at {} MiB overlaps {} at {} MiB",
                       table.OwnerOf(b.start, a.start == b.start ? 1 : 0), b.start,
                       table.OwnerOf(a.start, 0), a.start);
  }
  if (!anchors.empty()) table.KeepSoundAnchors(std::move(anchors), used);
  return table;
}

Result<BlockTable> BlockTable::Grown(const DiskMetadata& disk) const {
  BlockTable table(disk.bat_entries(), disk.chunk_ratio());
  if (!table.entries_)
    return MakeError(Code::kResourceExhausted, "no memory for a BAT of {} entries", table.count_);
  std::copy_n(entries_.get(), std::min(count_, table.count_), table.entries_.get());
  return table;
}

Result<void> BlockTable::AddPage(uint64_t first_index, std::span<const uint8_t> bytes,
                                 uint64_t file_bytes, const DiskMetadata& disk,
                                 std::vector<FileRange>* used, std::vector<Anchor>* anchors) {
  for (uint64_t i = 0; i < bytes.size() / 8; ++i) {
    const uint64_t index = first_index + i;
    const auto entry = Load<uint64_t>(bytes, i * 8);
    if (entry == 0) continue;
    const auto state = static_cast<BlockState>(entry & kStateMask);
    const uint64_t offset = entry & kOffsetMask;
    const bool bitmap = IsBitmap(index);
    if (entry & kReservedMask)
      return MakeError(Code::kDataLoss, "BAT entry {}: reserved bits are set ({:#x})", index,
                       entry);
    const bool known =
        bitmap ? state == kNotPresent || state == kFullyPresent
               : state != 4 && state != 5 && (state != kPartiallyPresent || disk.has_parent);
    if (!known)
      return MakeError(Code::kDataLoss, "BAT entry {}: state {} is not valid for a {}", index,
                       static_cast<int>(state),
                       bitmap            ? "sector bitmap"
                       : disk.has_parent ? "block"
                                         : "block of a disk without parent");
    if (state == kZeroState && offset != 0)
      return MakeError(Code::kDataLoss, "BAT entry {}: a block of zeroes has a place, {} MiB",
                       index, offset / kMiB);
    const uint64_t length = bitmap ? kBitmapBytes : disk.block_bytes;
    const bool present = state == kFullyPresent || state == kPartiallyPresent;
    const bool inside =
        offset >= kHeaderAreaEnd && offset <= file_bytes && length <= file_bytes - offset;
    if (present && offset < kHeaderAreaEnd)
      return MakeError(Code::kDataLoss, "BAT entry {}: its block lies in the header area", index);
    if (present && !inside)
      return MakeError(Code::kDataLoss,
                       "BAT entry {}: block at {} MiB lies past the end of the file ({} MiB)",
                       index, offset / kMiB, file_bytes / kMiB);
    Slot(index).store(Pack({state, present ? offset : 0}), std::memory_order_relaxed);
    const FileRange range{offset / kMiB, length / kMiB};
    if (present)
      used->push_back(range);
    else if (inside && (state == kUndefined || state == kUnmapped))
      anchors->push_back({range, index});
  }
  return {};
}

Result<void> BlockTable::CheckBitmaps() const {
  for (uint64_t index = 0; index < count_; ++index) {
    if (Unpack(Slot(index).load(std::memory_order_relaxed)).state != kPartiallyPresent) continue;
    const uint64_t bitmap = index / (ratio_ + 1) * (ratio_ + 1) + ratio_;
    if (!Unpack(Slot(bitmap).load(std::memory_order_relaxed)).present())
      return MakeError(Code::kDataLoss,
                       "BAT entry {}: a block that is partly present has no sector bitmap (BAT "
                       "entry {})",
                       index, bitmap);
  }
  return {};
}

void BlockTable::KeepSoundAnchors(std::vector<Anchor> anchors, std::vector<FileRange>* used) {
  const auto by_start = [](const auto& a, const auto& b) { return a.start < b.start; };
  std::sort(anchors.begin(), anchors.end(),
            [](const Anchor& a, const Anchor& b) { return a.range.start < b.range.start; });
  std::vector<FileRange> kept;
  for (const auto& [range, index] : anchors) {
    const auto next = std::upper_bound(used->begin(), used->end(), range, by_start);
    const bool meets_next = next != used->end() && range.start + range.length > next->start;
    const bool meets_last =
        next != used->begin() && std::prev(next)->start + std::prev(next)->length > range.start;
    const bool meets_kept = !kept.empty() && kept.back().start + kept.back().length > range.start;
    if (meets_next || meets_last || meets_kept) continue;
    const BlockPlace place = Unpack(Slot(index).load(std::memory_order_relaxed));
    Slot(index).store(Pack({place.state, range.start * kMiB}), std::memory_order_relaxed);
    kept.push_back(range);
  }
  used->insert(used->end(), kept.begin(), kept.end());
  std::sort(used->begin(), used->end(), by_start);
}

/// The name of the nth owner of a place, for an error.
std::string BlockTable::OwnerOf(uint64_t start, uint64_t nth) const {
  for (uint64_t index = 0; index < count_; ++index) {
    const BlockPlace place = Unpack(Slot(index).load(std::memory_order_relaxed));
    if (place.file_offset == 0 || place.file_offset / kMiB != start) continue;
    if (nth-- == 0)
      return fmt::format("the {} of BAT entry {}", IsBitmap(index) ? "sector bitmap" : "block",
                         index);
  }
  return "the header area, the log or a region";
}

std::vector<uint8_t> BlockTable::CopyPage(uint64_t page) const {
  std::vector<uint8_t> out(kLogSector);
  for (uint64_t i = 0; i < kEntriesAPage; ++i) {
    const BlockPlace place = Unpack(Slot(page * kEntriesAPage + i).load(std::memory_order_relaxed));
    Store(out, i * 8, place.file_offset | static_cast<uint64_t>(place.state));
  }
  return out;
}

uint64_t BlockTable::CountPresent() const {
  uint64_t present = 0;
  for (uint64_t index = 0; index < count_; ++index) {
    if (!IsBitmap(index) && Unpack(Slot(index).load(std::memory_order_relaxed)).present())
      ++present;
  }
  return present;
}

}  // namespace kvmbus::virtdev::vhdx
