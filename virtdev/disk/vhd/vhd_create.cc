// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhd/vhd_create.h"

#include <algorithm>

#include "virtdev/disk/vhd/vhd_format.h"
#include "vmm/os/clock.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhd;
using vmm::Code;
using vmm::MakeError;
using vmm::Result;

/// What Windows makes too; it takes no others but 512 KiB.
constexpr uint32_t kBlockBytes = 2u << 20;
constexpr uint32_t kSmallBlockBytes = 512u << 10;

Footer NewFooter(DiskType type, uint64_t size, const vmm::Guid& id) {
  Footer footer{};
  footer.cookie = kFooterCookie;
  footer.features = kFeatureReserved;
  footer.version = kVersion;
  footer.data_offset = type == DiskType::kFixed ? kNoOffset : kHeaderOffset;
  footer.time_stamp =
      TimeStampOf(static_cast<int64_t>(vmm::SystemClock().RealtimeNs() / 1'000'000'000));
  // Other programs go by the creator when they choose between size and geometry.
  footer.creator_app = kCreatorWindows;
  footer.creator_version = kCreatorVersion;
  footer.creator_os = kCreatorOsWindows;
  footer.original_size = size;
  footer.current_size = size;
  const Geometry geometry = GeometryOf(size);
  footer.cylinders = geometry.cylinders;
  footer.heads = geometry.heads;
  footer.sectors_per_track = geometry.sectors_per_track;
  footer.disk_type = static_cast<uint32_t>(type);
  footer.unique_id = id;
  footer.checksum = ChecksumOf(footer);
  return footer;
}

DynamicHeader NewHeader(uint64_t size, uint32_t block_bytes) {
  DynamicHeader header{};
  header.cookie = kHeaderCookie;
  header.data_offset = kNoOffset;
  header.table_offset = kTableOffset;
  header.version = kVersion;
  header.max_table_entries = static_cast<uint32_t>(BlockCount(size, block_bytes));
  header.block_size = block_bytes;
  return header;
}

/// The BAT's end: an entry of no block is all ones, and so is the rest of its last sector.
uint64_t TableEnd(const DynamicHeader& header) {
  return kTableOffset + RoundUp(uint64_t{header.max_table_entries} * 4, kSector);
}

/// All but the locators' texts, which lie between the BAT's end and `end`.
Result<void> WriteStructures(BlockFile& file, const Footer& footer, DynamicHeader header,
                             uint64_t end) {
  header.checksum = ChecksumOf(header);
  TRY_VOID(file.Write(vhd::BytesOf(footer), 0));
  TRY_VOID(file.Write(vhd::BytesOf(header), kHeaderOffset));
  constexpr uint64_t kPiece = 256u << 10;
  const std::vector<uint8_t> none(kPiece, 0xff);
  for (uint64_t at = kTableOffset; at < TableEnd(header); at += kPiece)
    TRY_VOID(file.Write(std::span(none).first(std::min(kPiece, TableEnd(header) - at)), at));
  TRY_VOID(file.Write(vhd::BytesOf(footer), end));
  return file.Flush();
}

}  // namespace

Result<void> CheckVhdOptions(const CreateDiskOptions& options) {
  if (options.size_bytes == 0 || options.size_bytes % kSector != 0)
    return MakeError(Code::kInvalidArgument,
                     "a disk of {} bytes: a multiple of 512 above 0 is needed", options.size_bytes);
  if (options.size_bytes > kMaxDiskBytes)
    return MakeError(Code::kOutOfRange,
                     "a VHD of {} GiB: the format ends at 2040; make a VHDX (.vhdx)",
                     options.size_bytes >> 30);
  if (options.logical_sector != kSector)
    return MakeError(Code::kInvalidArgument,
                     "a VHD with sectors of {} bytes: the format has 512 alone; make a VHDX",
                     options.logical_sector);
  if (options.block_bytes != kBlockBytes && options.block_bytes != kSmallBlockBytes)
    return MakeError(Code::kInvalidArgument, "block size {}; a VHD has 512 KiB or 2 MiB",
                     options.block_bytes);
  return {};
}

Result<void> FormatVhd(BlockFile& file, const CreateDiskOptions& options,
                       const vmm::Guid& disk_id) {
  TRY_VOID(CheckVhdOptions(options));
  const uint64_t size = options.size_bytes;
  const Footer footer =
      NewFooter(options.fixed ? DiskType::kFixed : DiskType::kDynamic, size, disk_id);
  if (!options.fixed) {
    const DynamicHeader header = NewHeader(size, options.block_bytes);
    return WriteStructures(file, footer, header, TableEnd(header));
  }
  TRY_VOID(file.Write(vhd::BytesOf(footer), size));
  TRY_VOID_CTX(file.Zero(0, size, true), "allocating the image");
  return file.Flush();
}

Result<void> FormatVhdChild(BlockFile& file, const VhdParent& parent) {
  CreateDiskOptions options;
  options.size_bytes = parent.size_bytes;
  TRY_VOID(CheckVhdOptions(options));
  const Footer footer = NewFooter(DiskType::kDifferencing, parent.size_bytes, vmm::Guid::Random());
  DynamicHeader header = NewHeader(parent.size_bytes, kBlockBytes);
  const std::vector<uint8_t> texts = TRY(SetVhdParent(&header, parent));
  PlaceLocators(&header, TableEnd(header));
  TRY_VOID(file.Write(texts, TableEnd(header)));
  return WriteStructures(file, footer, header, TableEnd(header) + texts.size());
}

Result<void> StampVhdChild(BlockFile& file, int64_t modified) {
  DynamicHeader header;
  TRY_VOID(file.Read(vhd::BytesOf(header), kHeaderOffset));
  header.parent_time_stamp = TimeStampOf(modified);
  header.checksum = ChecksumOf(header);
  return file.Write(vhd::BytesOf(header), kHeaderOffset);
}

}  // namespace kvmbus::virtdev
