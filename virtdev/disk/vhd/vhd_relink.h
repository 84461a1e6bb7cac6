// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gives a differencing VHD file another parent.
#pragma once

#include <memory>

#include "virtdev/disk/block_file.h"
#include "virtdev/disk/vhd/vhd_parent.h"

namespace kvmbus::virtdev::vhd {

/// Replaces what the image says of its parent. After a crash it names the old parent or the new
/// one. kFailedPrecondition: it is no differencing disk, or the parent has another size.
vmm::Result<void> ReplaceVhdParent(std::unique_ptr<BlockFile> file, const VhdParent& parent);

}  // namespace kvmbus::virtdev::vhd
