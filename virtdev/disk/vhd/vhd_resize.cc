// SPDX-License-Identifier: Apache-2.0
// The order that survives a crash; a flush lies between any two steps.
//   dynamic, larger: what would show up behind the old end goes; blocks that are in the way of a
//   longer BAT move to the file's end; the new entries are written, and the header counts them;
//   then the size, first in the footer at the end, which counts, then in its copy.
//   dynamic, smaller: the size likewise; then the blocks behind it are given up.
//   fixed: its footer at the end is all that it has, so there is always one: a second one with the
//   old size at the new end, zeroes over the first, then the new size; or first the new size in the
//   old place, then the footer behind the smaller disk, then the cut.
#include "virtdev/disk/vhd/vhd_resize.h"

#include <algorithm>

#include "virtdev/disk/vhd/vhd_edit.h"

namespace kvmbus::virtdev::vhd {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;

Result<void> CheckSize(const VhdFile& vhd, uint64_t bytes) {
  if (vhd.differencing())
    return Error(Code::kInvalidArgument,
                 "a differencing VHD has the size of its parent: merge it first, or make a VHDX of "
                 "it with 'vmctl disk convert'");
  if (bytes == 0 || bytes % kSector != 0)
    return MakeError(Code::kInvalidArgument,
                     "a disk of {} bytes: a multiple of {} above 0 is needed", bytes, kSector);
  if (bytes > kMaxDiskBytes)
    return MakeError(Code::kOutOfRange,
                     "a VHD of {} GiB: the format ends at 2040; make a VHDX of it with 'vmctl disk "
                     "convert'",
                     bytes >> 30);
  return {};
}

/// Other programs go by the geometry or by the size, as the creator says: it is us now.
Footer FooterOfSize(Footer footer, uint64_t bytes) {
  footer.current_size = bytes;
  const Geometry geometry = GeometryOf(bytes);
  footer.cylinders = geometry.cylinders;
  footer.heads = geometry.heads;
  footer.sectors_per_track = geometry.sectors_per_track;
  footer.creator_app = kCreatorWindows;
  footer.creator_version = kCreatorVersion;
  footer.creator_os = kCreatorOsWindows;
  footer.checksum = ChecksumOf(footer);
  return footer;
}

class FixedResizer {
 public:
  FixedResizer(const VhdFile& vhd, uint64_t bytes)
      : vhd_(vhd), file_(*vhd.file), old_bytes_(vhd.disk_bytes()), bytes_(bytes) {}

  Result<void> Grow() {
    // One write: a file that is longer has its footer.
    TRY_VOID(file_.Write(BytesOf(vhd_.footer), bytes_));
    TRY_VOID(file_.Flush());
    TRY_VOID_CTX(file_.Zero(old_bytes_, bytes_ - old_bytes_, true), "allocating the image");
    TRY_VOID(file_.Flush());
    return WriteEndFooter(file_, FooterOfSize(vhd_.footer, bytes_), bytes_);
  }
  Result<void> Shrink() {
    const Footer footer = FooterOfSize(vhd_.footer, bytes_);
    TRY_VOID(WriteEndFooter(file_, footer, vhd_.footer_offset));
    TRY_VOID(file_.Write(BytesOf(footer), bytes_));
    TRY_VOID(file_.Flush());
    return WriteEndFooter(file_, footer, bytes_);
  }

 private:
  const VhdFile& vhd_;
  BlockFile& file_;
  const uint64_t old_bytes_, bytes_;
};

class DynamicResizer {
 public:
  DynamicResizer(const VhdFile& vhd, BlockTable table, uint64_t bytes)
      : vhd_(vhd),
        file_(*vhd.file),
        bytes_(bytes),
        blocks_(BlockCount(bytes, vhd.header.block_size)),
        bitmap_bytes_(BitmapBytes(vhd.header.block_size)),
        block_bytes_(uint64_t{bitmap_bytes_} + vhd.header.block_size),
        table_(std::move(table)),
        end_of_use_(table_.end_of_use()),
        footer_at_(vhd.footer_offset) {}

  Result<void> Grow() {
    TRY_VOID(ForgetPastEnd(vhd_, &table_, vhd_.blocks()));
    TRY_VOID(ZeroPastEnd(vhd_, table_, vhd_.disk_bytes()));
    if (blocks_ > vhd_.header.max_table_entries) TRY_VOID(LengthenTable());
    return SetSize();
  }

  Result<void> Shrink() {
    TRY_VOID(SetSize());
    TRY_VOID(ForgetPastEnd(vhd_, &table_, blocks_));
    TRY_VOID(ZeroPastEnd(vhd_, table_, bytes_));
    DynamicHeader header = vhd_.header;
    header.max_table_entries = static_cast<uint32_t>(blocks_);
    TRY_VOID(WriteHeaderSector(vhd_, header));
    return WriteEndFooter(file_, FooterOfSize(vhd_.footer, bytes_), EndOfUse());
  }

 private:
  Result<void> SetSize() {
    const Footer footer = FooterOfSize(vhd_.footer, bytes_);
    TRY_VOID(WriteEndFooter(file_, footer, footer_at_));
    TRY_VOID(file_.Write(BytesOf(footer), 0));
    return file_.Flush();
  }

  Result<void> LengthenTable() {
    const uint64_t entries = vhd_.header.max_table_entries, table = vhd_.header.table_offset;
    const uint64_t end = table + RoundUp(blocks_ * 4, kSector);
    for (const Structure& part : vhd_.parts) {
      if (part.offset > table && part.offset < end)
        return MakeError(Code::kUnimplemented,
                         "{} at {:#x} is in the way of a longer BAT: make a new image of it with "
                         "'vmctl disk convert'",
                         part.name, part.offset);
    }
    TRY_VOID(MoveBlocksAway(table, end));
    const uint64_t first = table + entries * 4;
    if (end > footer_at_) {  // nothing lies there but the footer
      TRY_VOID(WriteEndFooter(file_, vhd_.footer, end));
      footer_at_ = end;
    }
    TRY_VOID_CTX(file_.Write(std::vector<uint8_t>(end - first, 0xff), first), "writing the BAT");
    TRY_VOID(file_.Flush());
    DynamicHeader header = vhd_.header;
    header.max_table_entries = static_cast<uint32_t>(blocks_);
    return WriteHeaderSector(vhd_, header);
  }

  /// Blocks in front of `end` go behind all others.
  Result<void> MoveBlocksAway(uint64_t begin, uint64_t end) {
    std::vector<uint64_t> moved;
    for (uint64_t block = 0; block < vhd_.blocks(); ++block) {
      const uint64_t place = table_.Get(block);
      if (place > begin && place < end) moved.push_back(block);
    }
    if (moved.empty()) return {};
    end_of_use_ = std::max(end_of_use_, end);
    std::vector<uint64_t> places;
    for (size_t i = 0; i < moved.size(); ++i) {
      places.push_back(BlockStartAfter(end_of_use_, bitmap_bytes_));
      end_of_use_ = places.back() + block_bytes_;
    }
    if (places.back() >= kMaxBlockStart)
      return Error(Code::kResourceExhausted,
                   "the image would grow past 2 TiB, where the VHD format ends; make a VHDX of it "
                   "with 'vmctl disk convert'");
    footer_at_ = RoundUp(end_of_use_, kSector);
    TRY_VOID(WriteEndFooter(file_, vhd_.footer, footer_at_));
    std::set<uint64_t> entries;
    for (size_t i = 0; i < moved.size(); ++i) {
      TRY_VOID(CopyBlock(vhd_, table_.Get(moved[i]), places[i]));
      table_.Set(moved[i], places[i]);
      entries.insert(moved[i]);
    }
    return CommitEntries(vhd_, table_, entries);
  }

  uint64_t EndOfUse() const {
    uint64_t end = 0;
    for (const Structure& part : vhd_.parts) end = std::max(end, part.offset + part.length);
    for (uint64_t block = 0; block < blocks_; ++block) {
      if (const uint64_t place = table_.Get(block); place != 0)
        end = std::max(end, place + block_bytes_);
    }
    return end;
  }

  const VhdFile& vhd_;
  BlockFile& file_;
  const uint64_t bytes_, blocks_;
  const uint32_t bitmap_bytes_;
  const uint64_t block_bytes_;  // with its bitmap
  BlockTable table_;
  uint64_t end_of_use_, footer_at_;
};

template <typename Resizer>
Result<void> Resize(Resizer resizer, bool grow) {
  return grow ? resizer.Grow() : resizer.Shrink();
}

}  // namespace

Result<void> ResizeVhd(std::unique_ptr<BlockFile> file, uint64_t disk_bytes) {
  const VhdFile vhd = TRY(OpenVhdToEdit(std::move(file)));
  TRY_VOID(CheckSize(vhd, disk_bytes));
  if (disk_bytes == vhd.disk_bytes()) return {};
  const bool grow = disk_bytes > vhd.disk_bytes();
  if (vhd.fixed()) return Resize(FixedResizer(vhd, disk_bytes), grow);
  return Resize(DynamicResizer(vhd, TRY(BlockTable::Read(vhd)), disk_bytes), grow);
}

}  // namespace kvmbus::virtdev::vhd
