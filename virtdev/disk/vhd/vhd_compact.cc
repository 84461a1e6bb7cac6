// SPDX-License-Identifier: Apache-2.0
// The order that survives a crash: the BAT gives blocks up, durably; blocks are copied into gaps
// that no durable entry names; that is flushed; their entries lead to the copies, flushed again. An
// entry is old or new, and both places hold the same. Places that were moved from are not written
// again: the file ends in front of them.
#include "virtdev/disk/vhd/vhd_compact.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <set>

#include "virtdev/disk/vhd/vhd_bitmap.h"
#include "virtdev/disk/vhd/vhd_edit.h"

namespace kvmbus::virtdev::vhd {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::Result;

constexpr uint64_t kBatchBytes = 64u << 20;  // copied between two flushes

class Compaction {
 public:
  Compaction(const VhdFile& vhd, BlockTable table, const Progress& progress)
      : vhd_(vhd),
        table_(std::move(table)),
        bitmap_bytes_(BitmapBytes(vhd.header.block_size)),
        length_(uint64_t{bitmap_bytes_} + vhd.header.block_size),
        progress_(progress),
        total_(2 * vhd.blocks()),
        piece_(1u << 20) {}

  Result<void> Run(bool find_zeroes) {
    TRY_VOID(ForgetPastEnd(vhd_, &table_, vhd_.blocks()));
    TRY_VOID(GiveUpBlocks(find_zeroes));
    TRY_VOID(MoveAll());
    return WriteEndFooter(*vhd_.file, vhd_.footer, EndOfUse());
  }

 private:
  Result<void> Step() {
    if (progress_ && !progress_(++steps_, total_))
      return Error(Code::kCancelled, "cancelled; the image is whole, and can be compacted again");
    return {};
  }

  Result<bool> HoldsNothing(uint64_t block, bool find_zeroes) {
    const uint64_t place = table_.Get(block);
    std::vector<uint8_t> bits(bitmap_bytes_);
    TRY_VOID_CTX(vhd_.file->Read(bits, place), "reading the sector bitmap of block {}", block);
    if (IsZero(bits)) return true;
    if (vhd_.differencing() || !find_zeroes) return false;
    const SectorBitmap bitmap(std::move(bits));
    for (uint64_t at = 0; at < vhd_.header.block_size; at += piece_.size()) {
      const auto part =
          std::span(piece_).first(std::min<uint64_t>(piece_.size(), vhd_.header.block_size - at));
      TRY_VOID_CTX(vhd_.file->Read(part, place + bitmap_bytes_ + at), "reading block {}", block);
      if (!IsZero(part) && HasData(bitmap, at, part)) return false;
    }
    return true;
  }

  /// Sectors that are not here read as zeroes, whatever lies there.
  static bool HasData(const SectorBitmap& bitmap, uint64_t offset, std::span<const uint8_t> bytes) {
    for (uint64_t at = 0; at < bytes.size(); at += kSector) {
      if (bitmap.Get((offset + at) / kSector) && !IsZero(bytes.subspan(at, kSector))) return true;
    }
    return false;
  }

  Result<void> GiveUpBlocks(bool find_zeroes) {
    std::set<uint64_t> given_up;
    for (uint64_t block = 0; block < vhd_.blocks(); ++block) {
      TRY_VOID(Step());
      if (table_.Get(block) == 0 || !TRY(HoldsNothing(block, find_zeroes))) continue;
      table_.Set(block, 0);
      given_up.insert(block);
    }
    return CommitEntries(vhd_, table_, given_up);
  }

  /// The highest block goes into the lowest gap until they meet.
  Result<void> MoveAll() {
    std::vector<uint64_t> blocks;
    for (uint64_t block = 0; block < vhd_.blocks(); ++block) {
      if (table_.Get(block) != 0) blocks.push_back(block);
    }
    std::ranges::sort(blocks, std::greater(), [this](uint64_t block) { return table_.Get(block); });
    std::vector<Gap> gaps = GapsOf(vhd_, table_);
    total_ = vhd_.blocks() + blocks.size();
    std::set<uint64_t> moved;
    auto gap = gaps.begin();
    for (const uint64_t block : blocks) {
      TRY_VOID(Step());
      while (gap != gaps.end() && !PlaceIn(*gap)) ++gap;
      if (gap == gaps.end() || *PlaceIn(*gap) > table_.Get(block)) break;
      const uint64_t to = *PlaceIn(*gap);
      TRY_VOID(CopyBlock(vhd_, table_.Get(block), to));
      table_.Set(block, to);
      gap->offset = to + length_;
      moved.insert(block);
      if (moved.size() * length_ < kBatchBytes) continue;
      TRY_VOID(CommitEntries(vhd_, table_, moved));
      moved.clear();
    }
    return CommitEntries(vhd_, table_, moved);
  }

  /// Where a block fits into a gap: its data aligned if possible.
  std::optional<uint64_t> PlaceIn(const Gap& gap) const {
    for (const uint64_t place :
         {BlockStartAfter(gap.offset, bitmap_bytes_), RoundUp(gap.offset, kSector)}) {
      if (place + length_ <= gap.end) return place;
    }
    return std::nullopt;
  }

  uint64_t EndOfUse() const {
    uint64_t end = vhd_.parts.back().offset + vhd_.parts.back().length;
    for (uint64_t block = 0; block < vhd_.blocks(); ++block) {
      if (table_.Get(block) != 0) end = std::max(end, table_.Get(block) + length_);
    }
    return end;
  }

  const VhdFile& vhd_;
  BlockTable table_;
  const uint32_t bitmap_bytes_;
  const uint64_t length_;  // of a block with its bitmap
  const Progress& progress_;
  uint64_t total_, steps_ = 0;
  std::vector<uint8_t> piece_;
};

}  // namespace

Result<void> CompactVhd(std::unique_ptr<BlockFile> file, bool find_zeroes,
                        const Progress& progress) {
  const VhdFile vhd = TRY(OpenVhdToEdit(std::move(file)));
  if (vhd.fixed())
    return Error(Code::kInvalidArgument,
                 "a fixed disk keeps all of its blocks: make a dynamic one of it with 'vmctl disk "
                 "convert'");
  return Compaction(vhd, TRY(BlockTable::Read(vhd)), progress).Run(find_zeroes);
}

}  // namespace kvmbus::virtdev::vhd
