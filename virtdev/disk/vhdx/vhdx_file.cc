// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_file.h"

#include "virtdev/disk/vhdx/vhdx_log.h"

namespace kvmbus::virtdev::vhdx {

using vmm::Result;

Result<VhdxFile> OpenVhdxFile(std::unique_ptr<BlockFile> file, bool read_only) {
  VhdxFile vhdx;
  vhdx.file_bytes = TRY(file->Size());
  vhdx.header = TRY(ReadActiveHeader(*file, vhdx.file_bytes));
  vhdx.was_dirty = !vhdx.header.header.log_guid.IsZero();
  if (vhdx.was_dirty) {
    const LogReplay replay = TRY(ReadLog(*file, vhdx.header.header, vhdx.file_bytes));
    if (read_only)
      file = ReplayInMemory(std::move(file), replay);
    else
      TRY_VOID_CTX(ReplayInPlace(*file, &vhdx.header, replay), "replaying the log");
    vhdx.file_bytes = TRY(file->Size());
  }
  vhdx.regions = TRY(ReadRegions(*file, vhdx.header.header, vhdx.file_bytes));
  vhdx.disk = TRY(ReadMetadata(*file, vhdx.regions.metadata));
  vhdx.file = std::move(file);
  return vhdx;
}

Result<BlockTable> ReadBlockTable(const VhdxFile& vhdx, std::vector<FileRange>* used) {
  const auto in_mib = [](uint64_t offset, uint64_t length) {
    return FileRange{offset / kMiB, length / kMiB};
  };
  std::vector<FileRange> owned = {in_mib(0, kHeaderAreaEnd)};
  const Header& header = vhdx.header.header;
  if (header.log_length != 0) owned.push_back(in_mib(header.log_offset, header.log_length));
  const RegionTable& regions = vhdx.regions;
  owned.push_back(in_mib(regions.bat.offset, regions.bat.length));
  owned.push_back(in_mib(regions.metadata.offset, regions.metadata.length));
  for (const Region& region : regions.others) owned.push_back(in_mib(region.offset, region.length));
  return BlockTable::Read(*vhdx.file, vhdx.disk, regions.bat, vhdx.file_bytes, std::move(owned),
                          used);
}

Result<bool> ZeroPastEnd(const VhdxFile& vhdx, const BlockTable& table, uint64_t disk_bytes) {
  const uint64_t in_block = disk_bytes % vhdx.disk.block_bytes;
  if (in_block == 0) return false;  // nor need there be a block
  const BlockPlace place = table.Get(disk_bytes / vhdx.disk.block_bytes);
  if (!place.present()) return false;
  TRY_VOID_CTX(vhdx.file->Zero(place.file_offset + in_block, vhdx.disk.block_bytes - in_block,
                               vhdx.disk.fixed),
               "clearing what lies behind the disk's end");
  return true;
}

}  // namespace kvmbus::virtdev::vhdx
