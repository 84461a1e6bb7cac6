// SPDX-License-Identifier: Apache-2.0
// The order that survives a crash: a block is copied into a gap that no durable BAT names, that is
// flushed, then one log entry leads to the copies. The old places are not written again.
#include "virtdev/disk/vhdx/vhdx_compact.h"

#include <algorithm>
#include <set>

#include "virtdev/disk/vhdx/vhdx_journal.h"
#include "virtdev/disk/vhdx/vhdx_space.h"

namespace kvmbus::virtdev::vhdx {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::Result;

constexpr uint64_t kBatchBytes = 64 * kMiB;  // copied between two flushes

class Compaction {
 public:
  Compaction(const VhdxFile& vhdx, BlockTable table, std::span<const FileRange> used,
             const Progress& progress)
      : vhdx_(vhdx),
        disk_(vhdx.disk),
        file_(*vhdx.file),
        table_(std::move(table)),
        free_(disk_.block_bytes / kMiB, used, vhdx.file_bytes / kMiB),
        journal_(*vhdx.file, vhdx.header),
        progress_(progress),
        total_(2 * disk_.blocks()),
        piece_(kMiB) {}

  Result<void> Run(bool find_zeroes) {
    TRY_VOID(journal_.Open(false));
    auto done = GiveUpBlocks(find_zeroes);
    if (done.ok()) done = MoveAll();
    // Whatever happened, the image is whole, and its log goes.
    auto closed = journal_.Close();
    if (!done.ok()) return done;
    TRY_VOID(std::move(closed));
    return CutFreeEnd();
  }

 private:
  /// A block, or the sector bitmap of the chunk that begins with a block.
  struct Unit {
    uint64_t file_offset;
    uint64_t block;
    bool bitmap;
  };
  struct Move {
    Unit unit;
    uint64_t to;
  };

  uint64_t LengthOf(const Unit& unit) const {
    return unit.bitmap ? kBitmapBytes : uint64_t{disk_.block_bytes};
  }

  Result<void> Step() {
    if (progress_ && !progress_(++steps_, total_))
      return Error(Code::kCancelled, "cancelled; the image is whole, and can be compacted again");
    return {};
  }

  Result<bool> HoldsZeroes(uint64_t block, const BlockPlace& place) {
    const uint64_t length =
        std::min<uint64_t>(disk_.block_bytes, disk_.disk_bytes - block * disk_.block_bytes);
    for (uint64_t at = 0; at < length; at += kMiB) {
      const auto part = std::span(piece_).first(std::min(kMiB, length - at));
      TRY_VOID_CTX(file_.Read(part, place.file_offset + at), "reading block {}", block);
      if (!IsZero(part)) return false;
    }
    return true;
  }

  /// Blocks that hold nothing have no space, nor remember any.
  Result<void> GiveUpBlocks(bool find_zeroes) {
    for (uint64_t block = 0; block < disk_.blocks(); ++block) {
      TRY_VOID(Step());
      const BlockPlace place = table_.Get(block);
      if (place.file_offset == 0) continue;
      const bool zeroes =
          find_zeroes && place.state == kFullyPresent && TRY(HoldsZeroes(block, place));
      if (place.present() && !zeroes) continue;
      table_.Set(block, {zeroes ? kZeroState : place.state, 0});
      TRY_VOID(MarkDirty(table_.PageOf(block), false));
      given_up_.push_back(place.file_offset);
    }
    TRY_VOID(CommitPages(false));
    for (const uint64_t place : given_up_) free_.Release(place / kMiB, disk_.block_bytes / kMiB);
    return {};
  }

  std::vector<Unit> UnitsFromTheEnd() const {
    std::vector<Unit> units;
    for (uint64_t block = 0; block < disk_.blocks(); ++block) {
      if (table_.Get(block).present())
        units.push_back({table_.Get(block).file_offset, block, false});
      if (!disk_.has_parent || block % disk_.chunk_ratio() != 0) continue;
      const BlockPlace bitmap = table_.GetBitmap(block);
      if (bitmap.present()) units.push_back({bitmap.file_offset, block, true});
    }
    std::sort(units.begin(), units.end(),
              [](const Unit& a, const Unit& b) { return a.file_offset > b.file_offset; });
    return units;
  }

  Result<void> MoveAll() {
    const std::vector<Unit> units = UnitsFromTheEnd();
    total_ = disk_.blocks() + units.size();
    for (const Unit& unit : units) {
      TRY_VOID(Step());
      const auto gap = unit.bitmap ? free_.TakeOne() : free_.Take();
      if (!gap) continue;
      if (*gap * kMiB > unit.file_offset) {
        free_.Release(*gap, LengthOf(unit) / kMiB);
        continue;
      }
      TRY_VOID(Copy(unit, *gap * kMiB));
      moves_.push_back({unit, *gap * kMiB});
      copied_ += LengthOf(unit);
      TRY_VOID(MarkDirty(unit.bitmap ? table_.BitmapPageOf(unit.block) : table_.PageOf(unit.block),
                         true));
      if (copied_ >= kBatchBytes) TRY_VOID(CommitPages(true));
    }
    return CommitPages(true);
  }

  /// Over whatever the gap held.
  Result<void> Copy(const Unit& unit, uint64_t to) {
    for (uint64_t at = 0; at < LengthOf(unit); at += kMiB) {
      TRY_VOID_CTX(file_.Read(piece_, unit.file_offset + at), "reading block {}", unit.block);
      if (IsZero(piece_))
        TRY_VOID_CTX(file_.Zero(to + at, kMiB, false), "moving block {}", unit.block);
      else
        TRY_VOID_CTX(file_.Write(piece_, to + at), "moving block {}", unit.block);
    }
    return {};
  }

  Result<void> MarkDirty(uint64_t page, bool flush_first) {
    dirty_pages_.insert(page);
    // A commit takes kMaxPages, and none of them in part.
    return dirty_pages_.size() < LogWriter::kMaxPages ? Result<void>() : CommitPages(flush_first);
  }

  Result<void> CommitPages(bool flush_first) {
    for (const Move& move : moves_) {
      if (move.unit.bitmap)
        table_.SetBitmap(move.unit.block, move.to);
      else
        table_.Set(move.unit.block, {table_.Get(move.unit.block).state, move.to});
    }
    if (dirty_pages_.empty()) return {};
    std::vector<Journal::Page> pages;
    for (const uint64_t page : dirty_pages_)
      pages.push_back({vhdx_.regions.bat.offset + page * kLogSector, table_.CopyPage(page)});
    TRY_VOID_CTX(journal_.Commit(pages, flush_first), "writing the BAT");
    for (const Move& move : moves_)
      free_.Release(move.unit.file_offset / kMiB, LengthOf(move.unit) / kMiB);
    moves_.clear();
    dirty_pages_.clear();
    copied_ = 0;
    return {};
  }

  Result<void> CutFreeEnd() {
    TRY(free_.CutFreeEnd(file_, vhdx_.file_bytes));
    return file_.Flush();
  }

  const VhdxFile& vhdx_;
  const DiskMetadata& disk_;
  BlockFile& file_;
  BlockTable table_;
  FreeSpace free_;
  Journal journal_;
  const Progress& progress_;
  uint64_t total_, steps_ = 0;
  std::vector<uint8_t> piece_;

  std::vector<uint64_t> given_up_;
  std::vector<Move> moves_;  // copied, and not yet in the table
  uint64_t copied_ = 0;
  std::set<uint64_t> dirty_pages_;
};

}  // namespace

Result<void> CompactVhdx(const VhdxFile& vhdx, bool find_zeroes, const Progress& progress) {
  if (vhdx.disk.fixed)
    return Error(Code::kInvalidArgument,
                 "a fixed disk keeps all of its blocks: make a dynamic one of it with 'vmctl disk "
                 "convert'");
  if (vhdx.header.header.log_length < kMiB)
    return Error(Code::kUnimplemented, "it has no log, so that it can only be opened for reading");
  std::vector<FileRange> used;
  BlockTable table = TRY(ReadBlockTable(vhdx, &used));
  return Compaction(vhdx, std::move(table), used, progress).Run(find_zeroes);
}

}  // namespace kvmbus::virtdev::vhdx
