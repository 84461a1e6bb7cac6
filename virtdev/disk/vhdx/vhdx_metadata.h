// SPDX-License-Identifier: Apache-2.0
/// \file
/// The metadata region of a VHDX file: what the disk is. Reference: [MS-VHDX] section 2.6.
#pragma once

#include <cstdint>

#include "virtdev/disk/block_file.h"
#include "virtdev/disk/image.h"
#include "virtdev/disk/vhdx/vhdx_region.h"

namespace kvmbus::virtdev::vhdx {

struct DiskMetadata {
  uint64_t disk_bytes = 0;
  uint32_t block_bytes = 0;
  uint32_t logical_sector = 512;
  uint32_t physical_sector = 4096;
  bool fixed = false;       ///< blocks stay allocated
  bool has_parent = false;  ///< a differencing disk
  ParentReference parent;   ///< of a differencing disk
  vmm::Guid disk_id;        ///< page 83 data

  uint64_t chunk_ratio() const { return ChunkRatio(logical_sector, block_bytes); }
  uint64_t blocks() const { return BlockCount(disk_bytes, block_bytes); }
  uint64_t bat_entries() const {
    return has_parent ? DifferencingBatEntryCount(blocks(), chunk_ratio())
                      : BatEntryCount(blocks(), chunk_ratio());
  }
};

/// Every item checked. kDataLoss says which one is wrong; kUnimplemented names a required item that
/// is unknown.
vmm::Result<DiskMetadata> ReadMetadata(BlockFile& file, const Region& region);

}  // namespace kvmbus::virtdev::vhdx
