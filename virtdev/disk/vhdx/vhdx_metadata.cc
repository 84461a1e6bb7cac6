// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_metadata.h"

#include <algorithm>
#include <bit>
#include <map>
#include <vector>

#include "virtdev/disk/vhdx/vhdx_locator.h"

namespace kvmbus::virtdev::vhdx {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;

constexpr uint64_t kMaxRegionBytes = 128 * kMiB;
constexpr uint32_t kMaxSystemItems = 1023;
constexpr uint32_t kMaxUserItems = 1024;

bool IsKnown(const vmm::Guid& id) {
  for (const vmm::Guid& known :
       {kFileParametersItem, kVirtualDiskSizeItem, kPage83Item, kLogicalSectorSizeItem,
        kPhysicalSectorSizeItem, kParentLocatorItem}) {
    if (known == id) return true;
  }
  return false;
}

class MetadataTable {
 public:
  MetadataTable(BlockFile& file, const Region& region) : file_(file), region_(region) {}

  Result<void> Read() {
    if (region_.length > kMaxRegionBytes)
      return MakeError(Code::kDataLoss, "a metadata region of {} MiB; 128 are allowed",
                       region_.length / kMiB);
    std::vector<uint8_t> bytes(kMetadataTableBytes);
    TRY_VOID_CTX(file_.Read(bytes, region_.offset), "reading the metadata table");
    const auto header = Load<MetadataTableHeader>(bytes, 0);
    if (header.signature != kMetadataSignature || header.entry_count > kMaxMetadataItems)
      return MakeError(Code::kDataLoss, "metadata table at {:#x}: wrong signature or {} entries",
                       region_.offset, header.entry_count);
    for (uint32_t i = 0; i < header.entry_count; ++i)
      TRY_VOID(AddEntry(Load<MetadataTableEntry>(
          bytes, sizeof(MetadataTableHeader) + size_t{i} * sizeof(MetadataTableEntry))));
    return CheckDisjoint();
  }

  bool Has(const vmm::Guid& id) const { return items_.count({false, id}) != 0; }

  /// The item's bytes; at most `limit`.
  Result<std::vector<uint8_t>> Bytes(const vmm::Guid& id, const char* name, uint32_t limit) {
    const auto at = items_.find({false, id});
    if (at == items_.end()) return MakeError(Code::kDataLoss, "metadata has no {}", name);
    if (at->second.length > limit)
      return MakeError(Code::kDataLoss, "metadata item {} has {} bytes, allowed are {}", name,
                       at->second.length, limit);
    std::vector<uint8_t> bytes(at->second.length);
    TRY_VOID_CTX(file_.Read(bytes, region_.offset + at->second.offset), "reading metadata item {}",
                 name);
    return bytes;
  }

  /// It must have just that length.
  template <typename T>
  Result<T> Item(const vmm::Guid& id, const char* name) {
    const std::vector<uint8_t> bytes = TRY(Bytes(id, name, kMiB));
    if (bytes.size() != sizeof(T))
      return MakeError(Code::kDataLoss, "metadata item {} has {} bytes, expected are {}", name,
                       bytes.size(), sizeof(T));
    return Load<T>(bytes, 0);
  }

 private:
  Result<void> AddEntry(const MetadataTableEntry& entry) {
    const std::string name = entry.item_id.ToString();
    const bool in_region = entry.length == 0
                               ? entry.offset == 0
                               : entry.offset >= kMetadataTableBytes && entry.length <= kMiB &&
                                     entry.offset <= region_.length &&
                                     entry.length <= region_.length - entry.offset;
    if (!in_region)
      return MakeError(Code::kDataLoss, "metadata item {}: {:#x}+{:#x} lies outside the region",
                       name, entry.offset, entry.length);
    const bool user = (entry.flags & kMetadataIsUser) != 0;
    const bool required = (entry.flags & kMetadataIsRequired) != 0;
    if (entry.item_id.IsZero() || (user && required) || (entry.flags & ~kMetadataFlags) != 0)
      return MakeError(Code::kDataLoss, "metadata item {}: flags {:#x} are not valid", name,
                       entry.flags);
    if (++counts_[user] > (user ? kMaxUserItems : kMaxSystemItems))
      return Error(Code::kDataLoss, "metadata has too many items");
    if (!user && entry.item_id == kIncompleteFileItem)
      return Error(Code::kDataLoss, "its creation was never finished; delete it, create it anew");
    if (required && !IsKnown(entry.item_id))
      return MakeError(Code::kUnimplemented,
                       "metadata item {} is required and unknown to this version", name);
    if (!items_.emplace(std::pair(user, entry.item_id), entry).second)
      return MakeError(Code::kDataLoss, "metadata item {} stands twice", name);
    return {};
  }

  Result<void> CheckDisjoint() const {
    std::vector<MetadataTableEntry> sorted;
    for (const auto& [key, entry] : items_) {
      if (entry.length != 0) sorted.push_back(entry);
    }
    std::sort(sorted.begin(), sorted.end(),
              [](const auto& a, const auto& b) { return a.offset < b.offset; });
    for (size_t i = 1; i < sorted.size(); ++i) {
      if (sorted[i - 1].offset + sorted[i - 1].length > sorted[i].offset)
        return MakeError(Code::kDataLoss, "metadata item {} overlaps item {}",
                         sorted[i].item_id.ToString(), sorted[i - 1].item_id.ToString());
    }
    return {};
  }

  BlockFile& file_;
  const Region region_;
  uint32_t counts_[2] = {};
  std::map<std::pair<bool, vmm::Guid>, MetadataTableEntry> items_;  // by (of the user, id)
};

Result<void> ReadFileParameters(MetadataTable& table, DiskMetadata* disk) {
  const auto parameters = TRY(table.Item<FileParameters>(kFileParametersItem, "file parameters"));
  if (!std::has_single_bit(parameters.block_size) || parameters.block_size < kMiB ||
      parameters.block_size > kMaxBlockBytes)
    return MakeError(Code::kDataLoss, "block size {}; a power of two from 1 to 256 MiB is allowed",
                     parameters.block_size);
  if ((parameters.flags & ~(kLeaveBlocksAllocated | kHasParent)) != 0)
    return MakeError(Code::kDataLoss, "file parameters: flags {:#x} are not valid",
                     parameters.flags);
  disk->block_bytes = parameters.block_size;
  disk->fixed = (parameters.flags & kLeaveBlocksAllocated) != 0;
  disk->has_parent = (parameters.flags & kHasParent) != 0;
  if (disk->has_parent != table.Has(kParentLocatorItem))
    return Error(Code::kDataLoss, disk->has_parent ? "a differencing disk without parent locator"
                                                   : "a parent locator in a disk without parent");
  if (disk->has_parent) {
    const std::vector<uint8_t> locator =
        TRY(table.Bytes(kParentLocatorItem, "parent locator", kMaxLocatorBytes));
    disk->parent = TRY(ParseParentLocator(locator));
  }
  return {};
}

}  // namespace

Result<DiskMetadata> ReadMetadata(BlockFile& file, const Region& region) {
  MetadataTable table(file, region);
  TRY_VOID(table.Read());
  DiskMetadata disk;
  TRY_VOID(ReadFileParameters(table, &disk));
  disk.logical_sector = TRY(table.Item<uint32_t>(kLogicalSectorSizeItem, "logical sector size"));
  disk.physical_sector = TRY(table.Item<uint32_t>(kPhysicalSectorSizeItem, "physical sector size"));
  for (const uint32_t sector : {disk.logical_sector, disk.physical_sector}) {
    if (sector != 512 && sector != 4096)
      return MakeError(Code::kDataLoss, "sector size {}; 512 and 4096 are allowed", sector);
  }
  disk.disk_bytes = TRY(table.Item<uint64_t>(kVirtualDiskSizeItem, "virtual disk size"));
  if (disk.disk_bytes == 0 || disk.disk_bytes > kMaxDiskBytes ||
      disk.disk_bytes % disk.logical_sector != 0)
    return MakeError(Code::kDataLoss, "virtual disk size {} is not valid", disk.disk_bytes);
  disk.disk_id = TRY(table.Item<vmm::Guid>(kPage83Item, "page 83 data"));
  return disk;
}

}  // namespace kvmbus::virtdev::vhdx
