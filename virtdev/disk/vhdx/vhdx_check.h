// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the strict check of one VHDX file tells the check of a chain.
#pragma once

#include <vector>

#include "virtdev/disk/tools/disk_tools.h"

namespace kvmbus::virtdev::check {

struct LayerReport {
  std::vector<Finding> findings;
  vmm::Guid identity;           ///< data write GUID
  uint32_t logical_sector = 0;  ///< 0: not known
  bool has_parent = false;      ///< and `parent` can be followed
  ParentReference parent;
};
LayerReport CheckVhdxFile(BlockFile& file, uint64_t file_bytes);

}  // namespace kvmbus::virtdev::check
