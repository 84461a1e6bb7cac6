// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhd/vhd_file.h"

#include <algorithm>
#include <optional>

namespace kvmbus::virtdev::vhd {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;

struct FoundFooter {
  Footer footer;
  uint64_t offset = 0;
  uint32_t length = 0;
  std::string flaw;  // "" if it is sound
};

Result<FoundFooter> ReadFooter(BlockFile& file, uint64_t offset, uint32_t length) {
  FoundFooter found{{}, offset, length, ""};
  TRY_VOID_CTX(file.Read(BytesOf(found.footer).first(length), offset), "reading a footer");
  const uint32_t sum = ChecksumOf(found.footer);
  if (found.footer.cookie != kFooterCookie)
    found.flaw = "no signature";
  else if (found.footer.checksum != sum)
    found.flaw =
        fmt::format("checksum {:#x} instead of {:#x}", uint32_t{found.footer.checksum}, sum);
  return found;
}

Result<FoundFooter> ReadEndFooter(BlockFile& file, uint64_t file_bytes) {
  FoundFooter whole = TRY(ReadFooter(file, file_bytes - kFooterBytes, kFooterBytes));
  if (whole.flaw.empty()) return whole;
  FoundFooter old = TRY(ReadFooter(file, file_bytes - kOldFooterBytes, kOldFooterBytes));
  return old.flaw.empty() ? old : whole;
}

bool HasHeader(const Footer& footer) {
  return footer.disk_type == static_cast<uint32_t>(DiskType::kDynamic) ||
         footer.disk_type == static_cast<uint32_t>(DiskType::kDifferencing);
}

/// Of one image. Its size may differ: growing the disk changes one footer after the other.
bool IsSameImage(const Footer& a, const Footer& b) {
  return a.disk_type == b.disk_type && a.data_offset == b.data_offset && a.unique_id == b.unique_id;
}

/// Which footer counts. The copy at 0 belongs to dynamic and differencing disks alone: at 0 a fixed
/// disk has a guest's data.
Result<void> ChooseFooter(VhdFile* vhd) {
  const FoundFooter end = TRY(ReadEndFooter(*vhd->file, vhd->file_bytes));
  FoundFooter copy = TRY(ReadFooter(*vhd->file, 0, kFooterBytes));
  if (copy.flaw.empty() && !HasHeader(copy.footer)) copy.flaw = "it is no dynamic disk's";
  const bool end_counts = end.flaw.empty() && (!HasHeader(end.footer) || !copy.flaw.empty() ||
                                               IsSameImage(end.footer, copy.footer));
  if (!end_counts && !copy.flaw.empty())
    return MakeError(Code::kDataLoss,
                     "neither the footer at the end ({:#x}: {}) nor its copy at 0 ({}) is sound",
                     end.offset, end.flaw, copy.flaw);
  vhd->footer = end_counts ? end.footer : copy.footer;
  vhd->footer_is_sound = end_counts;
  vhd->footer_offset = end_counts ? end.offset : vhd->file_bytes;
  vhd->copy_is_sound =
      vhd->fixed() || std::ranges::equal(BytesOf(vhd->footer), BytesOf(copy.footer));
  return {};
}

Result<void> CheckFooter(const VhdFile& vhd) {
  const Footer& footer = vhd.footer;
  if (footer.version >> 16 != kVersion >> 16)
    return MakeError(Code::kUnimplemented, "footer: version {:#x}; this version reads 1.0",
                     uint32_t{footer.version});
  if (!vhd.fixed() && !HasHeader(footer))
    return MakeError(Code::kDataLoss, "footer: disk type {}; 2, 3 and 4 are known",
                     uint32_t{footer.disk_type});
  const uint64_t size = footer.current_size;
  if (size == 0 || size % kSector != 0 || size > kMaxDiskBytes)
    return MakeError(Code::kDataLoss,
                     "footer: a disk of {} bytes; a multiple of 512 up to 2040 GiB is allowed",
                     size);
  if (vhd.fixed() && size > vhd.footer_offset)
    return MakeError(Code::kDataLoss,
                     "footer: a disk of {} bytes in a file that has {} in front of it: it was cut "
                     "off",
                     size, vhd.footer_offset);
  return {};
}

/// [offset, offset + length) lies in front of the footer.
Result<void> CheckInside(const VhdFile& vhd, uint64_t offset, uint64_t length, const char* name) {
  if (offset % kSector == 0 && offset >= kFooterBytes && offset <= vhd.footer_offset &&
      length <= vhd.footer_offset - offset)
    return {};
  return MakeError(Code::kDataLoss,
                   "{}: {:#x}+{:#x} is no place between the footer's copy and the footer at {:#x}",
                   name, offset, length, vhd.footer_offset);
}

Result<void> CheckHeader(const VhdFile& vhd) {
  const DynamicHeader& header = vhd.header;
  if (header.cookie != kHeaderCookie)
    return MakeError(Code::kDataLoss, "dynamic header at {:#x}: no signature",
                     uint64_t{vhd.footer.data_offset});
  if (const uint32_t sum = ChecksumOf(header); header.checksum != sum)
    return MakeError(Code::kDataLoss, "dynamic header at {:#x}: checksum {:#x} instead of {:#x}",
                     uint64_t{vhd.footer.data_offset}, uint32_t{header.checksum}, sum);
  if (header.version >> 16 != kVersion >> 16)
    return MakeError(Code::kUnimplemented, "dynamic header: version {:#x}; this version reads 1.0",
                     uint32_t{header.version});
  const uint32_t block = header.block_size;
  if (!std::has_single_bit(block) || block < kMinBlockBytes || block > kMaxBlockBytes)
    return MakeError(Code::kDataLoss,
                     "dynamic header: block size {}; a power of two from 64 KiB to 256 MiB is "
                     "allowed",
                     block);
  const uint64_t entries = header.max_table_entries;
  if (entries < vhd.blocks() || entries > BlockCount(kMaxDiskBytes, block))
    return MakeError(Code::kDataLoss, "dynamic header: {} BAT entries for a disk of {} blocks",
                     entries, vhd.blocks());
  return CheckInside(vhd, header.table_offset, entries * sizeof(uint32_t), "BAT");
}

Result<void> CheckDisjoint(const std::vector<Structure>& parts) {
  for (size_t i = 1; i < parts.size(); ++i) {
    const Structure &a = parts[i - 1], &b = parts[i];
    if (a.offset + a.length > b.offset)
      return MakeError(Code::kDataLoss, "{} at {:#x} overlaps {} at {:#x}", b.name, b.offset,
                       a.name, a.offset);
  }
  return {};
}

Result<void> ReadHeader(VhdFile* vhd) {
  const uint64_t offset = vhd->footer.data_offset;
  TRY_VOID(CheckInside(*vhd, offset, kHeaderBytes, "dynamic header"));
  TRY_VOID_CTX(vhd->file->Read(BytesOf(vhd->header), offset), "reading the dynamic header");
  TRY_VOID(CheckHeader(*vhd));
  const uint64_t table_bytes = uint64_t{vhd->header.max_table_entries} * sizeof(uint32_t);
  vhd->parts = {{0, kFooterBytes, "the footer's copy"},
                {offset, kHeaderBytes, "the dynamic header"},
                {vhd->header.table_offset, RoundUp(table_bytes, kSector), "the BAT"}};
  if (vhd->differencing())
    vhd->parent =
        TRY(ReadParentReference(*vhd->file, vhd->header, vhd->footer_offset, &vhd->parts));
  std::ranges::sort(vhd->parts, {}, &Structure::offset);
  return CheckDisjoint(vhd->parts);
}

}  // namespace

Result<VhdFile> OpenVhdFile(std::unique_ptr<BlockFile> file) {
  VhdFile vhd;
  vhd.file = std::move(file);
  vhd.file_bytes = TRY(vhd.file->Size());
  if (vhd.file_bytes < 2 * kFooterBytes)
    return MakeError(Code::kDataLoss, "a file of {} bytes: the smallest VHD has {}", vhd.file_bytes,
                     2 * kFooterBytes);
  TRY_VOID(ChooseFooter(&vhd));
  TRY_VOID(CheckFooter(vhd));
  if (!vhd.fixed()) TRY_VOID(ReadHeader(&vhd));
  return vhd;
}

Result<bool> HasVhdFooter(BlockFile& file) {
  const uint64_t bytes = TRY(file.Size());
  if (bytes < kFooterBytes) return false;
  return TRY(ReadEndFooter(file, bytes)).flaw.empty() ||
         TRY(ReadFooter(file, 0, kFooterBytes)).flaw.empty();
}

}  // namespace kvmbus::virtdev::vhd
