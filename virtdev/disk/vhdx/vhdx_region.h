// SPDX-License-Identifier: Apache-2.0
/// \file
/// The region table of a VHDX file, of which there are two copies: where BAT and metadata lie.
/// Reference: [MS-VHDX] section 2.2.3.
#pragma once

#include <cstdint>
#include <vector>

#include "virtdev/disk/block_file.h"
#include "virtdev/disk/vhdx/vhdx_format.h"

namespace kvmbus::virtdev::vhdx {

struct Region {
  uint64_t offset = 0;
  uint64_t length = 0;
};

struct RegionTable {
  Region bat;
  Region metadata;
  std::vector<Region> others;   ///< unknown ones that a reader may ignore; their space is taken
  std::vector<uint8_t> repair;  ///< not empty: the good copy, which both places should hold
};

/// The first copy, or the second if the first is damaged. kDataLoss if neither will do;
/// kUnimplemented for a required region that is unknown.
vmm::Result<RegionTable> ReadRegions(BlockFile& file, const Header& header, uint64_t file_bytes);

}  // namespace kvmbus::virtdev::vhdx
