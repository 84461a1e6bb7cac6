// SPDX-License-Identifier: Apache-2.0
/// \file
/// VhdxFile: a VHDX file read and checked from its headers to its BAT.
#pragma once

#include <memory>
#include <vector>

#include "virtdev/disk/vhdx/vhdx_bat.h"
#include "virtdev/disk/vhdx/vhdx_header.h"
#include "virtdev/disk/vhdx/vhdx_metadata.h"
#include "virtdev/disk/vhdx/vhdx_region.h"

namespace kvmbus::virtdev::vhdx {

/// Home: whoever opened it.
struct VhdxFile {
  std::unique_ptr<BlockFile> file;
  uint64_t file_bytes = 0;
  ActiveHeader header;
  bool was_dirty = false;  ///< its log had entries; they are replayed
  RegionTable regions;
  DiskMetadata disk;
};

/// Headers, log, regions and metadata. Replays a log that has entries: in memory only if
/// `read_only`.
vmm::Result<VhdxFile> OpenVhdxFile(std::unique_ptr<BlockFile> file, bool read_only);

/// The BAT. `used` gets what the file's parts, blocks and sector bitmaps take, sorted.
vmm::Result<BlockTable> ReadBlockTable(const VhdxFile& vhdx, std::vector<FileRange>* used);

/// The part of the last block that lies behind the end of a disk of `disk_bytes` reads as zeroes,
/// so that a larger disk finds nothing there. False: there is no such part. Not flushed.
vmm::Result<bool> ZeroPastEnd(const VhdxFile& vhdx, const BlockTable& table, uint64_t disk_bytes);

}  // namespace kvmbus::virtdev::vhdx
