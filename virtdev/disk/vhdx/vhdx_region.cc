// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_region.h"

#include <algorithm>
#include <set>

namespace kvmbus::virtdev::vhdx {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;

struct NamedRegion {
  uint64_t offset, length;
  std::string name;
};

Result<void> CheckDisjoint(std::vector<NamedRegion> regions) {
  std::sort(regions.begin(), regions.end(),
            [](const auto& a, const auto& b) { return a.offset < b.offset; });
  for (size_t i = 1; i < regions.size(); ++i) {
    if (regions[i - 1].offset + regions[i - 1].length > regions[i].offset)
      return MakeError(Code::kDataLoss, "{} at {:#x} overlaps {} at {:#x}", regions[i].name,
                       regions[i].offset, regions[i - 1].name, regions[i - 1].offset);
  }
  return {};
}

Result<void> CheckPlace(const RegionTableEntry& entry, uint64_t file_bytes) {
  if (entry.file_offset % kMiB != 0 || entry.length % kMiB != 0 || entry.length == 0 ||
      entry.file_offset < kHeaderAreaEnd)
    return MakeError(Code::kDataLoss, "region {}: {:#x}+{:#x} is no place for a region",
                     entry.guid.ToString(), entry.file_offset, entry.length);
  if (entry.file_offset > file_bytes || entry.length > file_bytes - entry.file_offset)
    return MakeError(Code::kDataLoss,
                     "region {} at {:#x}+{:#x} lies past the end of the file ({} bytes)",
                     entry.guid.ToString(), entry.file_offset, entry.length, file_bytes);
  if ((entry.required & ~1u) != 0)
    return MakeError(Code::kDataLoss, "region {}: reserved flags are set ({:#x})",
                     entry.guid.ToString(), entry.required);
  return {};
}

Result<RegionTable> ParseTable(std::span<const uint8_t> bytes, uint64_t offset,
                               const Header& header, uint64_t file_bytes) {
  const auto head = Load<RegionTableHeader>(bytes, 0);
  if (head.signature != kRegionSignature || head.checksum != StructureChecksum(bytes))
    return MakeError(Code::kDataLoss, "region table at {:#x}: wrong signature or checksum", offset);
  if (head.entry_count > kMaxRegions)
    return MakeError(Code::kDataLoss, "region table at {:#x}: {} entries", offset,
                     head.entry_count);
  RegionTable table;
  std::vector<NamedRegion> places = {{0, kHeaderAreaEnd, "the header area"}};
  if (header.log_length != 0) places.push_back({header.log_offset, header.log_length, "the log"});
  std::set<vmm::Guid> seen;
  for (uint32_t i = 0; i < head.entry_count; ++i) {
    const auto entry = Load<RegionTableEntry>(
        bytes, sizeof(RegionTableHeader) + size_t{i} * sizeof(RegionTableEntry));
    const std::string name = "region " + entry.guid.ToString();
    if (!seen.insert(entry.guid).second)
      return MakeError(Code::kDataLoss, "{} stands twice in the region table", name);
    TRY_VOID(CheckPlace(entry, file_bytes));
    places.push_back({entry.file_offset, entry.length, name});
    const Region region{entry.file_offset, entry.length};
    if (entry.guid == kBatRegion)
      table.bat = region;
    else if (entry.guid == kMetadataRegion)
      table.metadata = region;
    else if (entry.required & 1)
      return MakeError(Code::kUnimplemented, "{} is required and unknown to this version", name);
    else
      table.others.push_back(region);
  }
  if (table.bat.length == 0) return Error(Code::kDataLoss, "the region table has no BAT");
  if (table.metadata.length == 0) return Error(Code::kDataLoss, "the region table has no metadata");
  TRY_VOID(CheckDisjoint(std::move(places)));
  return table;
}

}  // namespace

Result<RegionTable> ReadRegions(BlockFile& file, const Header& header, uint64_t file_bytes) {
  std::vector<uint8_t> copies[2];
  for (int i = 0; i < 2; ++i) {
    copies[i].resize(kRegionTableBytes);
    TRY_VOID_CTX(file.Read(copies[i], kRegionTableOffset[i]), "reading region table {}", i + 1);
  }
  const bool same = copies[0] == copies[1];
  auto table = ParseTable(copies[0], kRegionTableOffset[0], header, file_bytes);
  if (table.ok()) {
    if (!same) table->repair = std::move(copies[0]);
    return table;
  }
  if (same) return table;
  auto second = ParseTable(copies[1], kRegionTableOffset[1], header, file_bytes);
  if (!second.ok()) return table;  // the first one's fault is the one to report
  second->repair = std::move(copies[1]);
  return second;
}

}  // namespace kvmbus::virtdev::vhdx
