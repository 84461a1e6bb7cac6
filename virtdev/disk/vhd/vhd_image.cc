// SPDX-License-Identifier: Apache-2.0
// A VHD, open. The format has no log; the order that survives a crash is:
//   open: if a footer is damaged, the other one is written over it. The copy at 0 is sound from
//   then on, and only a relink changes it, so that the file may end anywhere after a crash.
//   allocation: the block comes behind all others; the footer behind it, then its bitmap, and
//   zeroes where the file had anything. Its BAT entry changes in memory alone. a write ends: in
//   memory, the block's bitmap says that these sectors are here. flush: what changed in BAT and
//   bitmaps is noted; the file is flushed, so that all they lead to is durable; they are written;
//   the file is flushed again.
// A block never moves, and its entry is never taken back: there is nothing to undo.
#include <algorithm>
#include <mutex>
#include <set>

#include "virtdev/disk/borrowed_file.h"
#include "virtdev/disk/image.h"
#include "virtdev/disk/vhd/vhd_bat.h"
#include "virtdev/disk/vhd/vhd_bitmap.h"
#include "virtdev/disk/vhd/vhd_file.h"
#include "virtdev/disk/vhd/vhd_relink.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhd;
using vmm::Code;
using vmm::Result;

DiskInfo InfoOf(const VhdFile& vhd, bool read_only) {
  DiskInfo info;
  info.size_bytes = vhd.disk_bytes();
  info.logical_sector_bytes = kSector;
  info.physical_sector_bytes = kSector;
  info.read_only = read_only;
  info.disk_id = vhd.footer.unique_id;
  info.can_unmap = !vhd.fixed();
  // Unmapping does not hide what a parent has, and the disk may get a parent while it is in use.
  info.unmapped_reads_zero = false;
  return info;
}

/// The file is the disk, with a footer behind it.
class FixedVhd final : public Image {
 public:
  FixedVhd(VhdFile vhd, bool read_only) : vhd_(std::move(vhd)), info_(InfoOf(vhd_, read_only)) {}
  const DiskInfo& info() const override { return info_; }
  std::string_view format() const override { return "vhd"; }
  BlockFile& file() override { return *vhd_.file; }
  vmm::Guid identity() const override { return vhd_.footer.unique_id; }
  void MapLayer(uint64_t offset, uint64_t length, std::vector<ImageExtent>* extents) override {
    AppendExtent(*extents, At(offset, length));
  }
  Result<std::vector<ImageExtent>> MapForWrite(uint64_t offset, uint64_t length) override {
    return std::vector<ImageExtent>{At(offset, length)};
  }
  Result<void> Unmap(uint64_t, uint64_t) override { return {}; }
  Result<void> WriteZeroes(uint64_t offset, uint64_t length) override {
    return file().Zero(offset, length, true);
  }
  Result<void> Flush() override { return flush_.Run(file()); }
  Result<void> Close() override { return info_.read_only ? Result<void>() : Flush(); }

 private:
  ImageExtent At(uint64_t offset, uint64_t length) {
    return {ImageExtent::Kind::kData, vhd_.file.get(), offset, length};
  }

  VhdFile vhd_;
  const DiskInfo info_;
  StickyFlush flush_;
};

/// Dynamic or differencing.
class SparseVhd final : public Image {
 public:
  SparseVhd(VhdFile vhd, BlockTable table, std::unique_ptr<SectorBitmaps> bitmaps, bool read_only)
      : vhd_(std::move(vhd)),
        block_bytes_(vhd_.header.block_size),
        bitmap_bytes_(BitmapBytes(block_bytes_)),
        absent_(vhd_.differencing() ? ImageExtent::Kind::kParent : ImageExtent::Kind::kZero),
        info_(InfoOf(vhd_, read_only)),
        table_(std::move(table)),
        bitmaps_(std::move(bitmaps)),
        end_of_use_(table_.end_of_use()),
        file_bytes_(vhd_.file_bytes) {}

  const DiskInfo& info() const override { return info_; }
  std::string_view format() const override { return "vhd"; }
  BlockFile& file() override { return *vhd_.file; }
  vmm::Guid identity() const override { return vhd_.footer.unique_id; }
  const ParentReference* parent() const override {
    return vhd_.differencing() ? &vhd_.parent : nullptr;
  }

  void MapLayer(uint64_t offset, uint64_t length, std::vector<ImageExtent>* extents) override {
    for (const Piece& piece : Pieces(offset, length)) {
      const uint64_t place = table_.Get(piece.block);
      if (place == 0) {
        AppendExtent(*extents, {absent_, nullptr, 0, piece.length});
        continue;
      }
      const auto bitmap = bitmaps_->Get(piece.block, place);
      if (bitmap.ok())
        MapPresent(**bitmap, place, piece, extents);
      else  // Nobody knows where the data is: reading there fails as the bitmap's did.
        AppendExtent(*extents, {ImageExtent::Kind::kData, &file(), kUnreadable, piece.length});
    }
  }

  Result<std::vector<ImageExtent>> MapForWrite(uint64_t offset, uint64_t length) override {
    std::vector<ImageExtent> extents;
    for (const Piece& piece : Pieces(offset, length)) {
      const uint64_t place = TRY(PlaceForWrite(piece.block));
      AppendExtent(extents, At(place, piece.offset, piece.length));
    }
    return extents;
  }

  void WriteDone(uint64_t offset, uint64_t length) override {
    for (const Piece& piece : Pieces(offset, length)) {
      const auto bitmap = bitmaps_->Get(piece.block, table_.Get(piece.block));
      KVMBUS_ASSERT(bitmap.ok());  // in memory since MapForWrite
      const uint64_t first = piece.offset / kSector, count = piece.length / kSector;
      if ((*bitmap)->AllSet(first, count)) continue;
      std::lock_guard lock(mutex_);
      (*bitmap)->Set(first, count);
      dirty_bitmaps_.insert(piece.block);
    }
  }

  /// What is here becomes zeroes and stays here. A parent's data stays what it is.
  Result<void> Unmap(uint64_t offset, uint64_t length) override {
    std::vector<ImageExtent> extents;
    MapLayer(offset, length, &extents);
    for (const ImageExtent& extent : extents) {
      if (extent.kind == ImageExtent::Kind::kData)
        TRY_VOID(file().Release(extent.file_offset, extent.length));
    }
    return {};
  }

  Result<void> WriteZeroes(uint64_t offset, uint64_t length) override {
    for (const Piece& piece : Pieces(offset, length)) {
      // Nothing here reads as zeroes already, unless there is a parent to hide.
      if (!vhd_.differencing() && table_.Get(piece.block) == 0) continue;
      const uint64_t place = TRY(PlaceForWrite(piece.block));
      TRY_VOID(file().Zero(place + bitmap_bytes_ + piece.offset, piece.length, true));
      WriteDone(piece.block * block_bytes_ + piece.offset, piece.length);
    }
    return {};
  }

  Result<void> Flush() override {
    std::lock_guard lock(flush_mutex_);
    for (bool whole = false; !whole;) {
      const Batch batch = TakeDirty(&whole);
      auto flushed = FlushFile();  // what the batch leads to
      if (flushed.ok() && !batch.empty()) {
        flushed = WriteBatch(batch);
        if (flushed.ok()) flushed = FlushFile();
      }
      if (!flushed.ok()) {
        ReturnDirty(batch);
        return flushed;
      }
    }
    return {};
  }

  Result<void> Close() override { return info_.read_only ? Result<void>() : Flush(); }

  void TakeDiskId(const vmm::Guid& disk_id) override { info_.disk_id = disk_id; }

  Result<void> Relink(const ParentReference& parent) override {
    TRY_VOID(Flush());  // the file's BAT then says which places are taken
    std::scoped_lock lock(flush_mutex_, mutex_);
    const auto relinked = ReplaceParent(parent);
    // The header may lie behind the blocks now: nothing may come there.
    if (!relinked.ok()) end_of_use_ += kRelinkBytes;
    return relinked;
  }

  /// What a crash, or another program, has left of the footers.
  Result<void> RepairFooters() {
    if (!vhd_.copy_is_sound) {
      TRY_VOID(file().Write(vhd::BytesOf(vhd_.footer), 0));
      TRY_VOID(file().Flush());
    }
    if (vhd_.footer_is_sound) return {};
    // Behind the last block may be parts of one whose BAT entry never came: nobody's.
    const uint64_t at = RoundUp(end_of_use_, kSector);
    TRY_VOID(file().Write(vhd::BytesOf(vhd_.footer), at));
    TRY_VOID(file().Resize(at + kFooterBytes));
    file_bytes_ = at + kFooterBytes;
    return file().Flush();
  }

 private:
  /// Past the end of any file.
  static constexpr uint64_t kUnreadable = uint64_t{1} << 62;
  static constexpr size_t kMaxBatch = 4096;
  /// More than a relink puts behind the blocks: two texts of 60 KiB, a header, a footer.
  static constexpr uint64_t kRelinkBytes = 256u << 10;

  struct Piece {
    uint64_t block, offset, length;  // offset within the block's data
  };
  struct Batch {
    std::vector<uint64_t> pages, blocks;  // of the BAT; whose bitmaps
    std::vector<BlockTable::Part> parts;  // what goes where
    bool empty() const { return parts.empty(); }
  };

  /// A range as its blocks' pieces.
  std::vector<Piece> Pieces(uint64_t offset, uint64_t length) const {
    std::vector<Piece> pieces;
    while (length != 0) {
      const uint64_t in_block = offset % block_bytes_;
      const uint64_t piece = std::min<uint64_t>(length, block_bytes_ - in_block);
      pieces.push_back({offset / block_bytes_, in_block, piece});
      offset += piece;
      length -= piece;
    }
    return pieces;
  }

  ImageExtent At(uint64_t place, uint64_t offset, uint64_t length) {
    return {ImageExtent::Kind::kData, vhd_.file.get(), place + bitmap_bytes_ + offset, length};
  }

  void MapPresent(const SectorBitmap& bitmap, uint64_t place, const Piece& piece,
                  std::vector<ImageExtent>* extents) {
    const uint64_t end = (piece.offset + piece.length) / kSector;
    for (uint64_t sector = piece.offset / kSector; sector < end;) {
      const bool here = bitmap.Get(sector);
      const uint64_t run = bitmap.Run(sector, end - sector, here);
      if (run == 0) continue;  // a write has just ended there: looks again
      if (here)
        AppendExtent(*extents, At(place, sector * kSector, run * kSector));
      else
        AppendExtent(*extents, {absent_, nullptr, 0, run * kSector});
      sector += run;
    }
  }

  /// The block's place, with its bitmap in memory.
  Result<uint64_t> PlaceForWrite(uint64_t block) {
    uint64_t place = table_.Get(block);
    if (place == 0) place = TRY(Allocate(block));
    TRY(bitmaps_->Get(block, place));
    return place;
  }

  Result<uint64_t> Allocate(uint64_t block) {
    std::lock_guard lock(mutex_);
    if (const uint64_t place = table_.Get(block); place != 0) return place;  // who was first
    const uint64_t place = BlockStartAfter(end_of_use_, bitmap_bytes_);
    const uint64_t end = place + bitmap_bytes_ + block_bytes_;
    if (place >= kMaxBlockStart)
      return vmm::Error(Code::kResourceExhausted,
                        "the image has reached 2 TiB, where the VHD format ends; convert it to "
                        "VHDX with 'vmctl disk convert'");
    TRY_VOID_CTX(Extend(place, end), "adding a block of {} KiB to the image", block_bytes_ >> 10);
    end_of_use_ = end;
    bitmaps_->AddNew(block, !vhd_.differencing());
    table_.Set(block, place);
    dirty_pages_.insert(table_.PageOf(block));
    return place;
  }

  /// A block's space: its data reads as zeroes, and its bitmap says whether that counts.
  Result<void> Extend(uint64_t place, uint64_t end) {
    const uint64_t old_bytes = file_bytes_;
    if (end + kFooterBytes > old_bytes) {
      TRY_VOID(file().Write(vhd::BytesOf(vhd_.footer), end));
      file_bytes_ = end + kFooterBytes;
    }
    // The footer that was the last, or what a crash or another program has left there.
    if (place < old_bytes) TRY_VOID(file().Zero(place, std::min(end, old_bytes) - place, false));
    if (vhd_.differencing()) return {};
    return file().Write(std::vector<uint8_t>(bitmap_bytes_, 0xff), place);
  }

  Result<void> ReplaceParent(const ParentReference& parent) {
    TRY_VOID(ReplaceVhdParent(std::make_unique<BorrowedFile>(file()),
                              VhdParentOf(parent, info_.size_bytes)));
    VhdFile now = TRY(OpenVhdFile(std::make_unique<BorrowedFile>(file())));
    end_of_use_ = TRY(BlockTable::Read(now)).end_of_use();
    now.file = std::move(vhd_.file);
    vhd_ = std::move(now);
    file_bytes_ = vhd_.file_bytes;
    return {};
  }

  /// What changed, as it is now: all that it leads to was written before. `whole`: nothing is left.
  Batch TakeDirty(bool* whole) {
    std::lock_guard lock(mutex_);
    Batch batch;
    const auto take = [](std::set<uint64_t>* from, std::vector<uint64_t>* to, size_t limit) {
      while (!from->empty() && to->size() < limit)
        to->push_back(from->extract(from->begin()).value());
    };
    take(&dirty_bitmaps_, &batch.blocks, kMaxBatch);
    take(&dirty_pages_, &batch.pages, kMaxBatch);
    for (const uint64_t block : batch.blocks) {
      const auto bitmap = bitmaps_->Get(block, table_.Get(block));
      KVMBUS_ASSERT(bitmap.ok());  // in memory since it was changed
      batch.parts.push_back({table_.Get(block), (*bitmap)->Copy()});
    }
    for (const uint64_t page : batch.pages) batch.parts.push_back(table_.CopyPage(page));
    *whole = dirty_bitmaps_.empty() && dirty_pages_.empty();
    return batch;
  }

  void ReturnDirty(const Batch& batch) {
    std::lock_guard lock(mutex_);
    dirty_bitmaps_.insert(batch.blocks.begin(), batch.blocks.end());
    dirty_pages_.insert(batch.pages.begin(), batch.pages.end());
  }

  Result<void> WriteBatch(const Batch& batch) {
    for (const BlockTable::Part& part : batch.parts)
      TRY_VOID_CTX(file().Write(part.bytes, part.file_offset), "writing metadata at {:#x}",
                   part.file_offset);
    return {};
  }

  /// With flush_mutex_ held.
  Result<void> FlushFile() { return flush_.Run(file()); }

  VhdFile vhd_;
  const uint32_t block_bytes_, bitmap_bytes_;
  const ImageExtent::Kind absent_;
  DiskInfo info_;     // changes before the first request
  BlockTable table_;  // read by any thread, changed under mutex_
  const std::unique_ptr<SectorBitmaps> bitmaps_;

  std::mutex mutex_;  // guards what follows
  std::set<uint64_t> dirty_pages_, dirty_bitmaps_;
  uint64_t end_of_use_;  // where the next block comes
  uint64_t file_bytes_;

  std::mutex flush_mutex_;  // taken before mutex_
  StickyFlush flush_;
};

}  // namespace

Result<std::unique_ptr<Image>> OpenVhdImage(std::unique_ptr<BlockFile> file, bool read_only) {
  VhdFile vhd = TRY(OpenVhdFile(std::move(file)));
  if (vhd.fixed())
    return std::unique_ptr<Image>(std::make_unique<FixedVhd>(std::move(vhd), read_only));
  BlockTable table = TRY(BlockTable::Read(vhd));
  auto bitmaps = TRY(SectorBitmaps::Create(*vhd.file, vhd.blocks(), vhd.header.block_size));
  auto image =
      std::make_unique<SparseVhd>(std::move(vhd), std::move(table), std::move(bitmaps), read_only);
  if (!read_only) TRY_VOID_CTX(image->RepairFooters(), "repairing the footers");
  return std::unique_ptr<Image>(std::move(image));
}

}  // namespace kvmbus::virtdev
