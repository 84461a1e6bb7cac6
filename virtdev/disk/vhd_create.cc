// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhd_create.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "virtdev/disk/vhd_format.h"
#include "vmm/os/clock.h"
#include "vmm/text/utf16.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhd;
using vmm::Code;
using vmm::MakeError;
using vmm::Result;

/// What Windows makes too; it takes no others but 512 KiB.
constexpr uint32_t kBlockBytes = 2u << 20;
constexpr uint32_t kSmallBlockBytes = 512u << 10;

/// Seconds since 2000, of what the format can say.
uint32_t TimeStamp(int64_t unix_time) {
  return static_cast<uint32_t>(std::clamp<int64_t>(unix_time - kEpoch, 0, 0xffffffff));
}

Footer NewFooter(DiskType type, uint64_t size, const vmm::Guid& id) {
  Footer footer{};
  footer.cookie = kFooterCookie;
  footer.features = kFeatureReserved;
  footer.version = kVersion;
  footer.data_offset = type == DiskType::kFixed ? kNoOffset : kHeaderOffset;
  footer.time_stamp =
      TimeStamp(static_cast<int64_t>(vmm::SystemClock().RealtimeNs() / 1'000'000'000));
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

/// Appends a locator's text, in whole sectors; its place counts from the first text.
Result<void> AddLocator(ParentLocator* locator, uint32_t code, const std::string& path,
                        std::vector<uint8_t>* texts) {
  auto text = vmm::Utf8ToUtf16(path, std::endian::little);
  if (!text || text->empty() || text->size() > 60u << 10)
    return MakeError(Code::kInvalidArgument,
                     "the parent's path '{}' is no text of up to 30720 "
                     "characters",
                     path);
  locator->platform_code = code;
  locator->data_length = static_cast<uint32_t>(text->size());
  text->resize(RoundUp(text->size(), kSector));
  locator->data_space = static_cast<uint32_t>(text->size());
  locator->data_offset = texts->size();
  texts->insert(texts->end(), text->begin(), text->end());
  return {};
}

/// The file's name alone, as much of it as there is room for.
void SetParentName(DynamicHeader* header, const std::string& path) {
  std::ranges::fill(header->parent_unicode_name, uint8_t{0});
  const auto name = vmm::Utf8ToUtf16(path.substr(path.find_last_of("\\/") + 1), std::endian::big);
  if (!name) return;
  std::copy_n(name->begin(), std::min(name->size(), sizeof(header->parent_unicode_name) - 2),
              header->parent_unicode_name);
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

Result<VhdParent> VhdParentOf(const std::string& path, const Image& parent,
                              const ParentReference& reference) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) < 0)
    return vmm::Error::FromErrno(errno, fmt::format("'{}'", path));
  VhdParent kept;
  kept.identity = parent.identity();
  kept.size_bytes = parent.info().size_bytes;
  kept.modified = status.st_mtime;
  kept.relative_path = reference.paths[0].text;
  kept.absolute_path = reference.paths[1].text;
  return kept;
}

Result<std::vector<uint8_t>> SetVhdParent(DynamicHeader* header, const VhdParent& parent) {
  header->parent_unique_id = parent.identity;
  header->parent_time_stamp = TimeStamp(parent.modified);
  SetParentName(header, parent.relative_path);
  std::ranges::fill(header->locators, ParentLocator{});
  std::vector<uint8_t> texts;
  TRY_VOID(AddLocator(&header->locators[0], kLocatorRelative, parent.relative_path, &texts));
  if (!parent.absolute_path.empty())
    TRY_VOID(AddLocator(&header->locators[1], kLocatorAbsolute, parent.absolute_path, &texts));
  return texts;
}

void PlaceLocators(DynamicHeader* header, uint64_t file_offset) {
  for (ParentLocator& locator : header->locators) {
    if (locator.data_length != 0) locator.data_offset = locator.data_offset + file_offset;
  }
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

}  // namespace kvmbus::virtdev
