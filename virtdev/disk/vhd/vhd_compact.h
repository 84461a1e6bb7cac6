// SPDX-License-Identifier: Apache-2.0
/// \file
/// A VHD file without what its disk does not need.
#pragma once

#include <memory>

#include "virtdev/disk/tools/disk_tools.h"

namespace kvmbus::virtdev::vhd {

/// Gives up blocks that hold nothing: no sector of them is here, or, of a disk without a parent and
/// if `find_zeroes`, all that is here is zeroes. Moves blocks from the file's end into the gaps,
/// and cuts the end off. What a guest reads stays. A crash or a cancel leaves a sound image of the
/// same content. kInvalidArgument: a fixed disk.
vmm::Result<void> CompactVhd(std::unique_ptr<BlockFile> file, bool find_zeroes,
                             const Progress& progress);

}  // namespace kvmbus::virtdev::vhd
