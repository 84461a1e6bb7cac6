// SPDX-License-Identifier: Apache-2.0
/// \file
/// Merging a differencing VHDX into its parent.
#pragma once

#include <memory>

#include "virtdev/disk/block_file.h"
#include "virtdev/disk/disk_tools.h"

namespace kvmbus::virtdev {

/// The child learns what identity the parent, which was opened with `next`, takes when it changes.
vmm::Result<void> AnnounceMerge(Image& child, const Image& parent, const vmm::Guid& next);

/// Writes what `child` has into `parent`, after which the parent holds what the two of them held.
/// Both are locked by the caller. The child learns what identity the parent is about to take before
/// the parent changes: after a crash at any moment, or a cancel, the chain opens, holds what it
/// held, and can be merged again. Errors as CheckMergePair's.
vmm::Result<void> MergeVhdx(BlockFile& child, std::unique_ptr<BlockFile> parent,
                            const Progress& progress);

}  // namespace kvmbus::virtdev
