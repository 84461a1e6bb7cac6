// SPDX-License-Identifier: Apache-2.0
// A VHDX, open. The order that survives a crash:
//   first change: the journal opens (an entry in the log, then a header that names it).
//   allocation: space at the file's end, which reads as zeroes, or free space within, which is
//   zeroed; the entry changes in memory alone and its page is dirty.
//   allocation over a parent: the space is reserved and nobody sees it. When the first write into
//   it is done, the block becomes present, or partly present with the bits of what was written.
//   flush: what dirty pages hold is noted, all of them at one moment, so that what becomes dirty
//   meanwhile is the next flush's; then data is flushed if it must be durable before them, then one
//   log entry makes the pages durable together; then they are written in place. Sector bitmaps go
//   before the BAT, and the BAT goes from its end to its front: should they need several entries,
//   none of them leads to a bitmap that an earlier one has not brought.
//   release: an unmapped block's space serves others once the log has its release and the requests
//   that knew the old place have ended. Bitmap blocks are never released: an old entry of the log
//   that is replayed would write into them.
//   growth: all is flushed and in place; the rest is in vhdx_grow.cc. close: all flushed, the log
//   marked empty, then free space at the file's end is cut off.
#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "virtdev/disk/image.h"
#include "virtdev/disk/vhdx/vhdx_bitmap.h"
#include "virtdev/disk/vhdx/vhdx_file.h"
#include "virtdev/disk/vhdx/vhdx_grow.h"
#include "virtdev/disk/vhdx/vhdx_journal.h"
#include "virtdev/disk/vhdx/vhdx_relink.h"
#include "virtdev/disk/vhdx/vhdx_space.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx;
using vmm::Code;
using vmm::Result;

/// What should have been read to find out where some data is could not be read: reading it fails.
class UnreadableFile final : public BlockFile {
 public:
  Result<uint64_t> Size() override { return Failure(); }
  Result<void> Read(std::span<uint8_t>, uint64_t) override { return Failure(); }
  Result<void> Write(std::span<const uint8_t>, uint64_t) override { return Failure(); }
  Result<void> Flush() override { return Failure(); }
  Result<void> Resize(uint64_t) override { return Failure(); }
  Result<void> Zero(uint64_t, uint64_t, bool) override { return Failure(); }

 private:
  static vmm::Error Failure() {
    return vmm::Error(Code::kDataLoss, "a sector bitmap of the image cannot be read");
  }
};

class VhdxImage final : public Image {
 public:
  VhdxImage(VhdxFile vhdx, BlockTable table, std::span<const FileRange> used, bool read_only,
            const vmm::Guid& next_identity)
      : vhdx_(std::move(vhdx)),
        block_bytes_(vhdx_.disk.block_bytes),
        differencing_(vhdx_.disk.has_parent),
        table_(std::move(table)),
        free_(block_bytes_ / kMiB, used, vhdx_.file_bytes / kMiB),
        file_bytes_(vhdx_.file_bytes),
        bitmaps_(*vhdx_.file),
        journal_(*vhdx_.file, vhdx_.header, next_identity) {
    const DiskMetadata& disk = vhdx_.disk;
    info_.size_bytes = disk.disk_bytes;
    info_.logical_sector_bytes = disk.logical_sector;
    info_.physical_sector_bytes = disk.physical_sector;
    info_.read_only = read_only;
    info_.can_unmap = !disk.fixed;
    info_.unmapped_reads_zero = vhdx_.file->can_release();  // else a part of a block stays
    info_.disk_id = disk.disk_id;
  }

  const DiskInfo& info() const override { return info_; }
  std::string_view format() const override { return "vhdx"; }
  BlockFile& file() override { return *vhdx_.file; }

  uint64_t block_bytes() const override { return block_bytes_; }
  const ParentReference* parent() const override {
    return differencing_ ? &vhdx_.disk.parent : nullptr;
  }
  bool identity_follows_content() const override { return true; }
  vmm::Guid identity() const override {
    std::lock_guard lock(flush_mutex_);
    return journal_.data_write_guid();
  }

  void MapLayer(uint64_t offset, uint64_t length, std::vector<ImageExtent>* extents) override {
    for (Piece piece; Next(&offset, &length, &piece);) {
      const BlockPlace place = table_.Get(piece.block);
      if (place.state == kFullyPresent)
        AppendExtent(*extents, At(place, piece));
      else if (place.state == kPartiallyPresent)
        MapPartial(place, piece, extents);
      else if (differencing_ && place.state == kNotPresent)
        AppendExtent(*extents, {ImageExtent::Kind::kParent, nullptr, 0, piece.length});
      else
        AppendExtent(*extents, {ImageExtent::Kind::kZero, nullptr, 0, piece.length});
    }
  }

  bool ReadyToWrite() const override { return ready_.load(std::memory_order_acquire); }
  Result<void> PrepareToWrite() override {
    std::lock_guard lock(flush_mutex_);
    TRY_VOID(journal_.Open(true));
    ready_.store(true, std::memory_order_release);
    return {};
  }

  Result<std::vector<ImageExtent>> MapForWrite(uint64_t offset, uint64_t length) override {
    if (!ReadyToWrite()) TRY_VOID(PrepareToWrite());
    std::vector<ImageExtent> extents;
    for (Piece piece; Next(&offset, &length, &piece);)
      AppendExtent(extents, At(TRY(PlaceForWrite(piece)), piece));
    return extents;
  }

  void WriteDone(uint64_t offset, uint64_t length) override {
    if (!differencing_) return;
    for (Piece piece; Next(&offset, &length, &piece);) MarkWritten(piece);
  }

  bool WantsFlush() override {
    return differencing_ && bitmaps_.CountDirty() > SectorBitmaps::kManyDirty &&
           !flush_is_wanted_.exchange(true);
  }

  Result<void> Unmap(uint64_t offset, uint64_t length) override {
    if (vhdx_.disk.fixed) return {};
    if (!ReadyToWrite()) TRY_VOID(PrepareToWrite());
    for (Piece piece; Next(&offset, &length, &piece);) {
      if (!IsWhole(piece)) {
        if (file().can_release()) TRY_VOID(ZeroPiece(piece, false));
        continue;
      }
      // The host gets the space back at once. Our caller's passage through the gate keeps a
      // released place from being another block's before this is done.
      const BlockPlace place = Empty(piece.block, kUnmapped);
      if (place.present()) TRY_VOID(file().Release(place.file_offset, piece.length));
    }
    return {};
  }

  Result<void> WriteZeroes(uint64_t offset, uint64_t length) override {
    if (!ReadyToWrite()) TRY_VOID(PrepareToWrite());
    for (Piece piece; Next(&offset, &length, &piece);) {
      if (IsWhole(piece) && ShowsParent(table_.Get(piece.block)))
        Empty(piece.block, kZeroState);
      else
        TRY_VOID(ZeroPiece(piece, true));
    }
    return {};
  }

  Result<void> Flush() override {
    std::lock_guard lock(flush_mutex_);
    flush_is_wanted_.store(false);
    TRY_VOID(bitmaps_.LoadDirty());
    Batch batch = TRY(TakeDirtyPages());
    if (batch.pages.empty()) return journal_.Flush();
    for (size_t done = 0; done < batch.pages.size();) {
      const size_t count = std::min(LogWriter::kMaxPages, batch.pages.size() - done);
      const std::span pages = std::span(batch.pages).subspan(done, count);
      auto committed = journal_.Commit({pages.begin(), pages.end()}, batch.flush_first);
      if (!committed.ok()) {
        ReturnBatch(std::move(batch), done);
        return committed;
      }
      batch.flush_first = false;  // all that any of them leads to is older than that flush
      done += count;
    }
    if (journal_.is_applied()) bitmaps_.Written();
    Quarantine(batch.released);
    return {};
  }

  Result<void> Close() override {
    {
      std::lock_guard lock(flush_mutex_);
      if (!journal_.is_open()) return {};  // nothing was changed
    }
    TRY_VOID(Flush());
    std::lock_guard lock(flush_mutex_);
    TRY_VOID(journal_.Close());
    ready_.store(false);
    return CutFreeEnd();
  }

  Result<void> Grow(uint64_t size_bytes) override {
    TRY_VOID(CheckNewSize(vhdx_.disk, size_bytes));
    if (size_bytes == info_.size_bytes) return {};
    TRY_VOID(PrepareToWrite());
    TRY_VOID(Flush());
    std::scoped_lock lock(flush_mutex_, mutex_);
    DiskMetadata disk = vhdx_.disk;
    disk.disk_bytes = size_bytes;
    TRY_VOID(journal_.Apply());
    auto growth = PlanGrowth(vhdx_, table_, size_bytes);
    file_bytes_ = TRY(file().Size());  // with what the growth has added at its end
    if (!growth.ok()) return growth.error();
    TRY_VOID(journal_.Commit(growth->pages, growth->flush_first));
    // The place of a BAT that has moved is not used again while the image is open: an old entry of
    // the log that is replayed would write into it.
    vhdx_.regions.bat = growth->bat;
    vhdx_.disk = std::move(disk);
    info_.size_bytes = size_bytes;
    table_ = std::move(growth->table);
    return {};
  }

  Result<void> Relink(const ParentReference& parent) override {
    std::lock_guard lock(flush_mutex_);
    TRY_VOID(journal_.Open(false));
    TRY_VOID(journal_.Apply());
    const std::vector<Journal::Page> pages = TRY(LocatorPages(vhdx_, parent));
    TRY_VOID(journal_.Commit(pages, false));
    vhdx_.disk.parent = parent;
    return {};
  }

  /// Both copies of the region table as `good` has it.
  Result<void> RepairRegionTables(std::span<const uint8_t> good) {
    std::lock_guard lock(flush_mutex_);
    TRY_VOID(journal_.Open(false));
    std::vector<Journal::Page> pages;
    for (const uint64_t table : kRegionTableOffset) Journal::AppendPages(table, good, &pages);
    return journal_.Commit(pages, false);
  }

 private:
  struct Piece {
    uint64_t block, offset, length;  // offset within the block
  };
  struct Batch {
    std::vector<Journal::Page> pages;
    size_t bitmap_pages = 0;         // come first in `pages`
    std::vector<uint64_t> released;  // durable with the pages
    bool flush_first = false;
  };
  struct Quarantined {
    uint64_t file_offset, phase;
  };

  /// Takes the part in its first block off the front of a range; false if nothing is left.
  bool Next(uint64_t* offset, uint64_t* length, Piece* piece) const {
    const uint64_t in_block = *offset % block_bytes_;
    *piece = {*offset / block_bytes_, in_block, std::min(*length, block_bytes_ - in_block)};
    *offset += piece->length;
    *length -= piece->length;
    return piece->length != 0;
  }

  /// The disk's last block may be shorter than the others.
  uint64_t BytesOf(uint64_t block) const {
    return std::min<uint64_t>(block_bytes_, info_.size_bytes - block * block_bytes_);
  }

  bool IsWhole(const Piece& piece) const { return piece.length == BytesOf(piece.block); }
  bool ShowsParent(const BlockPlace& place) const {
    return differencing_ && place.state == kNotPresent;
  }

  ImageExtent At(const BlockPlace& place, const Piece& piece) const {
    return {ImageExtent::Kind::kData, vhdx_.file.get(), place.file_offset + piece.offset,
            piece.length};
  }

  /// With mutex_ held.
  void SetPlace(uint64_t block, const BlockPlace& place) {
    table_.Set(block, place);
    dirty_pages_.insert(table_.PageOf(block));
  }

  // Bits of a sector bitmap: counted from the first sector of the block's chunk.
  uint64_t FirstBit(const Piece& piece) const {
    return (piece.block % vhdx_.disk.chunk_ratio() * block_bytes_ + piece.offset) /
           info_.logical_sector_bytes;
  }
  uint64_t CountBits(const Piece& piece) const { return piece.length / info_.logical_sector_bytes; }

  void MapPartial(const BlockPlace& place, const Piece& piece, std::vector<ImageExtent>* extents) {
    thread_local std::vector<SectorBitmaps::Run> runs;  // keeps its memory
    runs.clear();
    bitmaps_.GetRuns(table_.GetBitmap(piece.block).file_offset, FirstBit(piece), CountBits(piece),
                     &runs);
    uint64_t at = place.file_offset + piece.offset;
    for (const SectorBitmaps::Run& run : runs) {
      const uint64_t length = run.bits * info_.logical_sector_bytes;
      if (run.presence == SectorBitmaps::Presence::kHere)
        AppendExtent(*extents, {ImageExtent::Kind::kData, vhdx_.file.get(), at, length});
      else if (run.presence == SectorBitmaps::Presence::kParent)
        AppendExtent(*extents, {ImageExtent::Kind::kParent, nullptr, 0, length});
      else
        AppendExtent(*extents, {ImageExtent::Kind::kData, &unreadable_, at, length});
      at += length;
    }
  }

  /// Of a block that is present, or gets space here.
  Result<BlockPlace> PlaceForWrite(const Piece& piece) {
    const BlockPlace place = table_.Get(piece.block);
    return place.present() ? place : Allocate(piece);
  }

  Result<BlockPlace> Allocate(const Piece& piece) {
    std::lock_guard lock(mutex_);
    const BlockPlace old = table_.Get(piece.block);
    if (old.present()) return old;  // another thread was first
    if (ShowsParent(old)) return Reserve(piece);
    const BlockPlace now{kFullyPresent, TRY(TakeSpace(old.file_offset, block_bytes_))};
    SetPlace(piece.block, now);
    return now;
  }

  /// With mutex_ held. The block shows its parent until a write into its space is done.
  Result<BlockPlace> Reserve(const Piece& piece) {
    if (!IsWhole(piece)) TRY_VOID(PrepareBitmap(piece.block));
    auto at = reserved_.find(piece.block);
    if (at == reserved_.end())
      at = reserved_.emplace(piece.block, TRY(TakeSpace(0, block_bytes_))).first;
    return BlockPlace{kFullyPresent, at->second};
  }

  /// With mutex_ held. The block's sector bitmap exists and says that nothing of it is here.
  Result<void> PrepareBitmap(uint64_t block) {
    const BlockPlace bitmap = table_.GetBitmap(block);
    const Piece whole{block, 0, BytesOf(block)};
    if (bitmap.present())
      return bitmaps_.Clear(bitmap.file_offset, FirstBit(whole), CountBits(whole));
    table_.SetBitmap(block, TRY(TakeSpace(0, kBitmapBytes)));
    dirty_pages_.insert(table_.BitmapPageOf(block));
    return {};
  }

  /// With mutex_ held. Space of a block or a bitmap, which reads as zeroes: what it once had
  /// (`own`), a gap, or the file's end.
  Result<uint64_t> TakeSpace(uint64_t own, uint64_t length) {
    EndQuarantine();
    uint64_t place = own;
    std::optional<uint64_t> gap;
    if (place == 0) gap = length == block_bytes_ ? free_.Take() : free_.TakeOne();
    if (gap) place = *gap * kMiB;
    if (place != 0) {
      // What was there must not come back, not even by a crash between log and data.
      auto cleared = file().Zero(place, length, false);
      if (!cleared.ok()) {
        if (gap) free_.Release(*gap, length / kMiB);
        return std::move(cleared.error()).WithContext("clearing free space of the image");
      }
      flush_first_ = true;
      return place;
    }
    place = (file_bytes_ + kMiB - 1) & kOffsetMask;
    if (place > kMaxFileBytes - length)
      return vmm::MakeError(Code::kResourceExhausted, "a VHDX file has no room behind {} TiB",
                            kMaxFileBytes >> 40);
    TRY_VOID_CTX(file().Resize(place + length), "adding {} MiB to the image", length / kMiB);
    file_bytes_ = place + length;
    return place;
  }

  /// The data of a piece is in the file: from now on it is found there.
  void MarkWritten(const Piece& piece) {
    if (table_.Get(piece.block).state == kFullyPresent) return;
    std::lock_guard lock(mutex_);
    BlockPlace place = table_.Get(piece.block);
    const auto reserved = reserved_.find(piece.block);
    if (place.state == kNotPresent && reserved != reserved_.end())
      place.file_offset = reserved->second;
    else if (place.state != kPartiallyPresent)
      return;  // emptied while it was written
    const BlockState old = place.state;
    place.state = IsWhole(piece) ? kFullyPresent : kPartiallyPresent;
    bool news = place.state != old;
    if (place.state == kPartiallyPresent) {
      const uint64_t bitmap = table_.GetBitmap(piece.block).file_offset;
      news = bitmaps_.Set(bitmap, FirstBit(piece), CountBits(piece)) || news;
      const Piece whole{piece.block, 0, BytesOf(piece.block)};
      if (news && bitmaps_.KnowsAllSet(bitmap, FirstBit(whole), CountBits(whole)))
        place.state = kFullyPresent;
    }
    if (reserved != reserved_.end()) reserved_.erase(reserved);
    if (place.state != old) SetPlace(piece.block, place);
    flush_first_ = flush_first_ || news;
  }

  /// A part of a block reads as zeroes from now on.
  Result<void> ZeroPiece(const Piece& piece, bool keep_space) {
    const BlockPlace place = table_.Get(piece.block);
    if (!place.present() && !ShowsParent(place)) return {};  // it does already
    const BlockPlace at = TRY(PlaceForWrite(piece));
    TRY_VOID(file().Zero(at.file_offset + piece.offset, piece.length, keep_space));
    if (differencing_) MarkWritten(piece);
    return {};
  }

  /// The block has nothing, not even its parent's, and reads as zeroes from now on. Returns what it
  /// was.
  BlockPlace Empty(uint64_t block, BlockState state) {
    std::lock_guard lock(mutex_);
    const BlockPlace old = table_.Get(block);
    if (!old.present() && !ShowsParent(old)) return old;
    // The space of a write that is under way, or that failed: the file never named it.
    if (const auto at = reserved_.find(block); at != reserved_.end()) {
      quarantine_.push_back({at->second, gate().phase()});
      reserved_.erase(at);
    }
    SetPlace(block, {state, 0});
    if (old.present()) released_.push_back(old.file_offset);
    return old;
  }

  /// What all dirty pages hold now. Data that completed before is older than the flush that
  /// follows. It takes as much memory as the dirty part of the BAT at most twice.
  Result<Batch> TakeDirtyPages() {
    std::lock_guard lock(mutex_);
    Batch batch;
    TRY_VOID(bitmaps_.TakeDirty(&batch.pages));
    batch.bitmap_pages = batch.pages.size();
    while (!dirty_pages_.empty()) {
      const uint64_t page = dirty_pages_.extract(std::prev(dirty_pages_.end())).value();
      batch.pages.push_back({vhdx_.regions.bat.offset + page * kLogSector, table_.CopyPage(page)});
    }
    batch.released.swap(released_);
    batch.flush_first = std::exchange(flush_first_, false);
    return batch;
  }

  /// Undoes TakeDirtyPages, but for the first `done` pages, which are durable.
  void ReturnBatch(Batch batch, size_t done) {
    std::lock_guard lock(mutex_);
    const std::span pages(batch.pages);
    if (done < batch.bitmap_pages) bitmaps_.Return(pages.subspan(done, batch.bitmap_pages - done));
    for (const Journal::Page& page : pages.subspan(std::max(done, batch.bitmap_pages)))
      dirty_pages_.insert((page.file_offset - vhdx_.regions.bat.offset) / kLogSector);
    released_.insert(released_.end(), batch.released.begin(), batch.released.end());
    flush_first_ = flush_first_ || batch.flush_first;
  }

  /// The releases are durable; the places are free when those have ended who may still use them.
  void Quarantine(std::span<const uint64_t> released) {
    std::lock_guard lock(mutex_);
    for (const uint64_t place : released) quarantine_.push_back({place, gate().phase()});
    EndQuarantine();
  }

  /// With mutex_ held.
  void EndQuarantine() {
    if (quarantine_.empty()) return;
    gate().Advance();
    gate().Advance();
    while (!quarantine_.empty() && gate().HasEnded(quarantine_.front().phase)) {
      free_.Release(quarantine_.front().file_offset / kMiB, block_bytes_ / kMiB);
      quarantine_.pop_front();
    }
  }

  /// Nothing is under way: what is in quarantine is free, and what was reserved for writes that
  /// failed.
  Result<void> CutFreeEnd() {
    std::lock_guard lock(mutex_);
    for (const auto& [block, place] : reserved_) quarantine_.push_back({place, 0});
    reserved_.clear();
    for (const Quarantined& place : quarantine_)
      free_.Release(place.file_offset / kMiB, block_bytes_ / kMiB);
    quarantine_.clear();
    file_bytes_ = TRY(free_.CutFreeEnd(file(), file_bytes_));
    return {};
  }

  VhdxFile vhdx_;
  const uint64_t block_bytes_;
  const bool differencing_;
  DiskInfo info_;
  BlockTable table_;  // read by any thread, changed under mutex_
  std::atomic<bool> ready_{false};

  std::mutex mutex_;  // guards what follows
  std::set<uint64_t> dirty_pages_;
  bool flush_first_ =
      false;  // a dirty page leads to data, or to space that has held something else
  std::map<uint64_t, uint64_t> reserved_;  // block to space, until the first write into it is done
  FreeSpace free_;
  std::vector<uint64_t> released_;  // places that blocks gave up, by pages that are dirty
  std::deque<Quarantined> quarantine_;
  uint64_t file_bytes_;

  SectorBitmaps bitmaps_;  // changed under mutex_
  UnreadableFile unreadable_;
  std::atomic<bool> flush_is_wanted_{false};

  mutable std::mutex flush_mutex_;  // taken before mutex_; guards journal_
  Journal journal_;
};

}  // namespace

Result<std::unique_ptr<Image>> OpenVhdxImage(std::unique_ptr<BlockFile> file, bool read_only,
                                             const vmm::Guid& next_identity) {
  VhdxFile vhdx = TRY(OpenVhdxFile(std::move(file), read_only));
  if (!read_only && vhdx.header.header.log_length < kMiB)
    return vmm::Error(Code::kUnimplemented,
                      "it has no log, so that it can only be opened for reading");
  std::vector<FileRange> used;
  BlockTable table = TRY(ReadBlockTable(vhdx, &used));
  const std::vector<uint8_t> repair = std::move(vhdx.regions.repair);
  auto image = std::make_unique<VhdxImage>(std::move(vhdx), std::move(table), used, read_only,
                                           next_identity);
  if (!read_only && !repair.empty())
    TRY_VOID_CTX(image->RepairRegionTables(repair), "repairing the region tables");
  return std::unique_ptr<Image>(std::move(image));
}

}  // namespace kvmbus::virtdev
