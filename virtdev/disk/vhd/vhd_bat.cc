// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhd/vhd_bat.h"

#include <algorithm>

namespace kvmbus::virtdev::vhd {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

constexpr uint64_t kReadBytes = 256u << 10;

}  // namespace

BlockTable::BlockTable(uint64_t offset, uint64_t count, uint64_t blocks)
    : offset_(offset),
      count_(count),
      blocks_(blocks),
      entries_(static_cast<uint32_t*>(std::calloc(count, sizeof(uint32_t)))) {}

Result<BlockTable> BlockTable::Read(const VhdFile& vhd) {
  // The table lies within the file, and pages that hold no block are never touched: what the file
  // really has justifies the memory.
  BlockTable table(vhd.header.table_offset, vhd.header.max_table_entries, vhd.blocks());
  if (!table.entries_)
    return MakeError(Code::kResourceExhausted, "no memory for a BAT of {} entries", table.count_);
  std::vector<uint32_t> starts;
  std::vector<uint8_t> buffer(std::min(kReadBytes, table.count_ * 4));
  for (uint64_t first = 0; first < table.count_; first += kReadBytes / 4) {
    const auto part =
        std::span(buffer).first(std::min<uint64_t>(buffer.size(), (table.count_ - first) * 4));
    TRY_VOID_CTX(vhd.file->Read(part, table.offset_ + first * 4), "reading the BAT");
    TRY_VOID(table.AddPiece(vhd, first, part, &starts));
  }
  TRY_VOID(table.CheckDisjoint(vhd, std::move(starts)));
  return table;
}

Result<void> BlockTable::AddPiece(const VhdFile& vhd, uint64_t first,
                                  std::span<const uint8_t> bytes, std::vector<uint32_t>* starts) {
  const uint64_t length = uint64_t{BitmapBytes(vhd.header.block_size)} + vhd.header.block_size;
  for (uint64_t i = 0; i < bytes.size() / 4; ++i) {
    Be32 entry;
    std::memcpy(&entry, bytes.data() + i * 4, sizeof(entry));
    if (entry == kUnallocated) continue;
    const uint64_t offset = uint64_t{entry} * kSector;
    if (offset < kFooterBytes)
      return MakeError(Code::kDataLoss, "BAT entry {}: its block lies in the footer's copy",
                       first + i);
    if (offset > vhd.footer_offset || length > vhd.footer_offset - offset)
      return MakeError(Code::kDataLoss,
                       "BAT entry {}: block at {:#x} goes past the end of the data ({:#x})",
                       first + i, offset, vhd.footer_offset);
    Slot(first + i).store(entry, std::memory_order_relaxed);
    starts->push_back(entry);
  }
  return {};
}

Result<void> BlockTable::CheckDisjoint(const VhdFile& vhd, std::vector<uint32_t> starts) {
  const uint64_t length = uint64_t{BitmapBytes(vhd.header.block_size)} + vhd.header.block_size;
  std::ranges::sort(starts);
  for (const Structure& part : vhd.parts) {
    const auto next = std::ranges::lower_bound(starts, part.offset / kSector);
    const bool meets_next =
        next != starts.end() && uint64_t{*next} * kSector < part.offset + part.length;
    const bool meets_last =
        next != starts.begin() && uint64_t{*std::prev(next)} * kSector + length > part.offset;
    if (meets_next || meets_last) {
      const uint32_t start = meets_next ? *next : *std::prev(next);
      return MakeError(Code::kDataLoss, "BAT entry {}: block at {:#x} overlaps {} at {:#x}",
                       OwnerOf(start, 0), uint64_t{start} * kSector, part.name, part.offset);
    }
  }
  for (size_t i = 1; i < starts.size(); ++i) {
    if (uint64_t{starts[i] - starts[i - 1]} * kSector < length)
      return MakeError(Code::kDataLoss, "BAT entry {}: block at {:#x} overlaps that of entry {}",
                       OwnerOf(starts[i], starts[i] == starts[i - 1] ? 1 : 0),
                       uint64_t{starts[i]} * kSector, OwnerOf(starts[i - 1], 0));
  }
  end_of_use_ = vhd.parts.back().offset + vhd.parts.back().length;
  if (!starts.empty())
    end_of_use_ = std::max(end_of_use_, uint64_t{starts.back()} * kSector + length);
  return {};
}

/// The nth entry that has this block, for an error.
uint64_t BlockTable::OwnerOf(uint32_t start, uint64_t nth) const {
  uint64_t index = 0;
  for (; index + 1 < count_; ++index) {
    if (Slot(index).load(std::memory_order_relaxed) == start && nth-- == 0) break;
  }
  return index;
}

BlockTable::Part BlockTable::CopyPage(uint64_t page) const {
  const uint64_t begin = std::max(page * kPageBytes, offset_);
  const uint64_t end = std::min((page + 1) * kPageBytes, offset_ + count_ * 4);
  Part part{begin, std::vector<uint8_t>(end - begin)};
  for (uint64_t at = 0; at < part.bytes.size(); at += 4) {
    const uint32_t sector = Slot((begin + at - offset_) / 4).load(std::memory_order_relaxed);
    const Be32 entry = sector == 0 ? kUnallocated : sector;
    std::memcpy(part.bytes.data() + at, &entry, sizeof(entry));
  }
  return part;
}

uint64_t BlockTable::CountPresent() const {
  uint64_t present = 0;
  for (uint64_t block = 0; block < blocks_; ++block) present += Get(block) != 0 ? 1 : 0;
  return present;
}

}  // namespace kvmbus::virtdev::vhd
