// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>

#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/chain/parent_path.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/tools/new_file.h"
#include "virtdev/disk/vhd/vhd_create.h"
#include "virtdev/disk/vhdx/vhdx_format.h"
#include "virtdev/disk/vhdx/vhdx_locator.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx;
using vmm::Code;
using vmm::MakeError;
using vmm::Result;

constexpr uint64_t kLogOffset = 1 * kMiB;
constexpr uint32_t kLogBytes = 1 * kMiB;
constexpr uint64_t kMetadataOffset = 2 * kMiB;
constexpr uint32_t kMetadataBytes = 1 * kMiB;
constexpr uint64_t kBatOffset = 3 * kMiB;

Result<void> CheckOptions(const CreateDiskOptions& options) {
  if (options.format == "vhd") return CheckVhdOptions(options);
  if (options.format != "raw" && options.format != "vhdx")
    return MakeError(Code::kInvalidArgument, "format '{}'; there are vhdx, vhd and raw",
                     options.format);
  for (const uint32_t sector : {options.logical_sector, options.physical_sector}) {
    if (sector != 512 && sector != 4096)
      return MakeError(Code::kInvalidArgument, "sector size {}; 512 and 4096 are allowed", sector);
  }
  if (options.physical_sector < options.logical_sector)
    return MakeError(Code::kInvalidArgument,
                     "physical sectors of {} bytes, smaller than the logical ones of {}: leave the "
                     "physical sector's size out",
                     options.physical_sector, options.logical_sector);
  if (options.size_bytes == 0 || options.size_bytes % options.logical_sector != 0)
    return MakeError(Code::kInvalidArgument,
                     "a disk of {} bytes: a multiple of {} above 0 is needed", options.size_bytes,
                     options.logical_sector);
  if (options.size_bytes > kMaxDiskBytes)
    return MakeError(Code::kOutOfRange, "a disk of {} TiB; 64 TiB are allowed",
                     options.size_bytes >> 40);
  if (!std::has_single_bit(options.block_bytes) || options.block_bytes < kMiB ||
      options.block_bytes > 256 * kMiB)
    return MakeError(Code::kInvalidArgument,
                     "block size {}; a power of two from 1 to 256 MiB is needed",
                     options.block_bytes);
  return {};
}

/// The identifier, both headers and both region tables.
Result<void> WriteHeaderArea(BlockFile& file, uint32_t bat_bytes) {
  std::vector<uint8_t> identifier(4096, 0);
  Store(identifier, 0, kFileSignature);
  const std::u16string_view creator = u"kvmbus";
  std::memcpy(identifier.data() + 8, creator.data(), creator.size() * 2);
  TRY_VOID(file.Write(identifier, kIdentifierOffset));
  Header header = {};
  header.signature = kHeaderSignature;
  header.file_write_guid = vmm::Guid::Random();
  header.data_write_guid = vmm::Guid::Random();
  header.version = 1;
  header.log_length = kLogBytes;
  header.log_offset = kLogOffset;
  for (int slot = 0; slot < 2; ++slot) {
    header.sequence_number = static_cast<uint64_t>(slot) + 1;
    std::vector<uint8_t> bytes(kHeaderBytes, 0);
    Store(bytes, 0, header);
    Store(bytes, 4, StructureChecksum(bytes));
    TRY_VOID(file.Write(bytes, kHeaderOffset[slot]));
  }
  std::vector<uint8_t> table(kRegionTableBytes, 0);
  RegionTableHeader head = {};
  head.signature = kRegionSignature;
  head.entry_count = 2;
  Store(table, 0, head);
  Store(table, sizeof(head), RegionTableEntry{kBatRegion, kBatOffset, bat_bytes, 1});
  Store(table, sizeof(head) + sizeof(RegionTableEntry),
        RegionTableEntry{kMetadataRegion, kMetadataOffset, kMetadataBytes, 1});
  Store(table, 4, StructureChecksum(table));
  for (const uint64_t offset : kRegionTableOffset) TRY_VOID(file.Write(table, offset));
  return {};
}

Result<void> WriteMetadata(BlockFile& file, const CreateDiskOptions& options,
                           const vmm::Guid& disk_id, const ParentReference* parent) {
  std::vector<uint8_t> locator;
  if (parent != nullptr) locator = TRY(BuildParentLocator(*parent));
  std::vector<uint8_t> bytes(kMetadataTableBytes + 4096 + locator.size(), 0);
  MetadataTableHeader head = {};
  head.signature = kMetadataSignature;
  uint32_t at = kMetadataTableBytes;
  const auto add_bytes = [&](const vmm::Guid& id, const void* value, size_t size, uint32_t flags) {
    Store(bytes, sizeof(head) + size_t{head.entry_count} * sizeof(MetadataTableEntry),
          MetadataTableEntry{id, at, static_cast<uint32_t>(size), flags, 0});
    std::memcpy(bytes.data() + at, value, size);
    at += static_cast<uint32_t>(size);
    ++head.entry_count;
  };
  const auto add = [&](const vmm::Guid& id, const auto& value, uint32_t flags) {
    add_bytes(id, &value, sizeof(value), flags);
  };
  constexpr uint32_t kDiskItem = kMetadataIsRequired | kMetadataIsVirtualDisk;
  add(kFileParametersItem,
      FileParameters{options.block_bytes, (options.fixed ? kLeaveBlocksAllocated : 0) |
                                              (parent != nullptr ? kHasParent : 0)},
      kMetadataIsRequired);
  add(kVirtualDiskSizeItem, options.size_bytes, kDiskItem);
  add(kLogicalSectorSizeItem, options.logical_sector, kDiskItem);
  add(kPhysicalSectorSizeItem, options.physical_sector, kDiskItem);
  add(kPage83Item, disk_id, kDiskItem);
  if (parent != nullptr)
    add_bytes(kParentLocatorItem, locator.data(), locator.size(), kMetadataIsRequired);
  Store(bytes, 0, head);
  return file.Write(bytes, kMetadataOffset);
}

/// The BAT of a fixed disk, a piece at a time, and the space of its blocks.
Result<void> FillFixed(BlockFile& file, const CreateDiskOptions& options, uint64_t first_block) {
  const uint64_t ratio = ChunkRatio(options.logical_sector, options.block_bytes);
  const uint64_t blocks = BlockCount(options.size_bytes, options.block_bytes);
  const uint64_t entries = BatEntryCount(blocks, ratio);
  constexpr uint64_t kPiece = 32768;
  std::vector<uint64_t> piece(std::min(kPiece, entries));
  uint64_t block = 0;
  for (uint64_t start = 0; start < entries; start += kPiece) {
    const uint64_t count = std::min(kPiece, entries - start);
    for (uint64_t i = 0; i < count; ++i) {
      const bool bitmap = (start + i) % (ratio + 1) == ratio;
      piece[i] = bitmap ? 0 : (first_block + block++ * options.block_bytes) | kFullyPresent;
    }
    TRY_VOID(file.Write({reinterpret_cast<const uint8_t*>(piece.data()), count * 8},
                        kBatOffset + start * 8));
  }
  const uint64_t end = first_block + blocks * options.block_bytes;
  TRY_VOID(file.Resize(end));
  TRY_VOID_CTX(file.Zero(first_block, end - first_block, true), "allocating the blocks");
  return {};
}

/// A name that would not open as what it is.
Result<void> CheckName(const std::string& path, const CreateDiskOptions& options) {
  const std::string named = IsVhdxName(path) ? "vhdx" : IsVhdName(path) ? "vhd" : "raw";
  if (named == options.format && !IsForeignName(path)) return {};
  return MakeError(Code::kInvalidArgument, "a {} image named '{}': name it {}", options.format,
                   path, options.format == "raw" ? ".raw or .img" : "." + options.format);
}

/// A differencing image on options.parent, which stays locked meanwhile: nobody may write it.
Result<void> CreateChild(const std::string& path, const CreateDiskOptions& options) {
  const auto chain = TRY_CTX(OpenChain(options.parent, true), "the parent of '{}'", path);
  return TRY(NewChildFile(path, options, chain->top())).Publish();
}

}  // namespace

Result<NewFile> NewChildFile(const std::string& path, CreateDiskOptions options, Image& parent) {
  const DiskInfo& info = parent.info();
  ParentReference reference;
  reference.linkage = {parent.identity()};
  reference.modified = ModifiedOf(parent.file());
  if (parent.format() == "raw" || reference.linkage[0].IsZero())
    return MakeError(Code::kInvalidArgument,
                     "'{}', a {} image, cannot have a child: convert it to VHDX with 'vmctl disk "
                     "convert'",
                     options.parent, parent.format());
  if (options.format != parent.format() || options.fixed)
    return MakeError(Code::kInvalidArgument,
                     "a child of '{}' is a {} image that grows, like its parent: name it .a{}, and "
                     "leave --fixed out",
                     options.parent, parent.format(), parent.format());
  if (options.size_bytes == 0) options.size_bytes = info.size_bytes;
  if (options.size_bytes != info.size_bytes)
    return MakeError(Code::kInvalidArgument,
                     "an image has the size of its parent, {} bytes: leave --size out",
                     info.size_bytes);
  options.logical_sector = info.logical_sector_bytes;
  options.physical_sector = info.physical_sector_bytes;
  reference.paths = TRY_CTX(PathsToParent(path, options.parent), "creating '{}'", path);
  // What could not be opened afterwards is not made.
  const auto roots = TRY(ParentRoots(path, {}));
  TRY(FindParent(path, reference, roots));
  NewFile file =
      TRY_CTX(NewImageFile(path, options, info.disk_id, &reference), "creating '{}'", path);
  if (options.format == "vhd")
    TRY_VOID_CTX(FormatVhdChild(file.file(), VhdParentOf(reference, info.size_bytes)),
                 "creating '{}'", path);
  return file;
}

Result<void> FormatVhdx(BlockFile& file, const CreateDiskOptions& options, const vmm::Guid& disk_id,
                        const ParentReference* parent) {
  TRY_VOID(CheckOptions(options));
  if (parent != nullptr && options.fixed)
    return vmm::Error(Code::kInvalidArgument, "an image with a parent cannot be fixed");
  const uint64_t ratio = ChunkRatio(options.logical_sector, options.block_bytes);
  const uint64_t blocks = BlockCount(options.size_bytes, options.block_bytes);
  const uint64_t bat_bytes = 8 * (parent != nullptr ? DifferencingBatEntryCount(blocks, ratio)
                                                    : BatEntryCount(blocks, ratio));
  const uint64_t bat_region = (bat_bytes + kMiB - 1) / kMiB * kMiB;
  const uint64_t first_block = kBatOffset + bat_region;
  TRY_VOID(file.Resize(first_block));
  // The log must never lack the space for an entry.
  TRY_VOID(file.Zero(kLogOffset, kLogBytes, true));
  TRY_VOID(WriteHeaderArea(file, static_cast<uint32_t>(bat_region)));
  TRY_VOID(WriteMetadata(file, options, disk_id, parent));
  if (options.fixed) TRY_VOID(FillFixed(file, options, first_block));
  return file.Flush();
}

Result<NewFile> NewImageFile(const std::string& path, const CreateDiskOptions& options,
                             const vmm::Guid& disk_id, const ParentReference* parent) {
  TRY_VOID(CheckOptions(options));
  TRY_VOID(CheckName(path, options));
  NewFile file = TRY(NewFile::Create(path));
  if (options.format == "vhdx") {
    TRY_VOID(FormatVhdx(file.file(), options, disk_id, parent));
    return file;
  }
  if (options.format == "vhd") {
    if (parent == nullptr) TRY_VOID(FormatVhd(file.file(), options, disk_id));
    return file;
  }
  TRY_VOID(file.file().Resize(options.size_bytes));
  if (options.fixed)
    TRY_VOID_CTX(file.file().Zero(0, options.size_bytes, true), "allocating the image");
  return file;
}

Result<void> CreateDisk(const std::string& path, const CreateDiskOptions& options) {
  if (!options.parent.empty()) return CreateChild(path, options);
  NewFile file = TRY_CTX(NewImageFile(path, options, vmm::Guid::Random()), "creating '{}'", path);
  return file.Publish();
}

}  // namespace kvmbus::virtdev
