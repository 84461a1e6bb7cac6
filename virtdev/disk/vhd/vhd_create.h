// SPDX-License-Identifier: Apache-2.0
/// \file
/// New VHD files.
#pragma once

#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/vhd/vhd_parent.h"

namespace kvmbus::virtdev {

/// kInvalidArgument and kOutOfRange for what the format does not have.
vmm::Result<void> CheckVhdOptions(const CreateDiskOptions& options);

/// The empty image itself, into an empty file. `disk_id` becomes its unique id.
vmm::Result<void> FormatVhd(BlockFile& file, const CreateDiskOptions& options,
                            const vmm::Guid& disk_id);

/// An empty differencing image (.vhd or .avhd), into an empty file.
vmm::Result<void> FormatVhdChild(BlockFile& file, const VhdParent& parent);
/// Changes the time at which the parent was written last, in an image that FormatVhdChild has made.
/// Not flushed.
vmm::Result<void> StampVhdChild(BlockFile& file, int64_t modified);

}  // namespace kvmbus::virtdev
