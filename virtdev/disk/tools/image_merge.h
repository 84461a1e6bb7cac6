// SPDX-License-Identifier: Apache-2.0
/// \file
/// Writing what a differencing image has into its parent, whatever their format.
#pragma once

#include <memory>

#include "virtdev/disk/image.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/tools/disk_tools.h"

namespace kvmbus::virtdev {

inline constexpr uint64_t kMergePiece = 1u << 20;

/// kInvalidArgument, kFailedPrecondition: the two are not linked, or the parent's disk is larger or
/// of other sectors.
vmm::Result<void> CheckMergePair(const Image& child, const Image& parent);

/// Opens a file that a merge writes to. `next` is what the identity of a VHDX becomes when its
/// content first changes; zero: a random one.
vmm::Result<std::unique_ptr<Image>> OpenForMerge(std::unique_ptr<BlockFile> file,
                                                 ImageFormat format, const vmm::Guid& next = {});

/// Before the parent changes: notes in the child the identity that the parent will have once it has
/// changed, `next`, with which it was opened. An image whose identity stays needs nothing.
vmm::Result<void> AnnounceMerge(Image& child, const Image& parent, const vmm::Guid& next);

/// Writes what the child has of [offset, offset + length) into the parent; its own zeroes hide what
/// the parent has. Not flushed.
vmm::Result<void> MergeRange(Image& child, uint64_t offset, uint64_t length, Image& parent);

/// Gives the parent the child's size, writes all that the child has into it, and closes the parent,
/// also if the merge is cancelled (kCancelled).
vmm::Result<void> MergeLayer(Image& child, Image& parent, const Progress& progress);

/// Writes what `child` has into `parent`, after which the parent holds what the two of them held.
/// Both are of this format, and locked by the caller. After a crash at any moment, or a cancel, the
/// chain opens, holds what it held, and can be merged again. Errors as CheckMergePair's.
vmm::Result<void> MergeImageFiles(ImageFormat format, BlockFile& child,
                                  std::unique_ptr<BlockFile> parent, const Progress& progress);

}  // namespace kvmbus::virtdev
