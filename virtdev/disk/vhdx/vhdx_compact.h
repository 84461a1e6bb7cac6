// SPDX-License-Identifier: Apache-2.0
/// \file
/// A VHDX file without what its disk does not need.
#pragma once

#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/vhdx/vhdx_file.h"

namespace kvmbus::virtdev::vhdx {

/// Gives up the space of unmapped blocks and, if `find_zeroes`, of blocks that hold zeroes alone;
/// moves blocks and sector bitmaps from the file's end into the gaps, and cuts the end off. What a
/// guest reads stays, and so does the identity: children stay too. A crash or a cancel leaves a
/// sound image of the same content. `vhdx` was opened for writing. kInvalidArgument: a fixed disk.
vmm::Result<void> CompactVhdx(const VhdxFile& vhdx, bool find_zeroes, const Progress& progress);

}  // namespace kvmbus::virtdev::vhdx
