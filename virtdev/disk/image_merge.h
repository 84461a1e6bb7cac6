// SPDX-License-Identifier: Apache-2.0
/// \file
/// Writing what a differencing image has into its parent, whatever their format.
#pragma once

#include "virtdev/disk/disk_tools.h"
#include "virtdev/disk/image.h"

namespace kvmbus::virtdev {

inline constexpr uint64_t kMergePiece = 1u << 20;

/// kInvalidArgument, kFailedPrecondition: the two are not linked, or the parent's disk is larger or
/// of other sectors.
vmm::Result<void> CheckMergePair(const Image& child, const Image& parent);

/// Writes what the child has of [offset, offset + length) into the parent; its own zeroes hide what
/// the parent has. Not flushed.
vmm::Result<void> MergeRange(Image& child, uint64_t offset, uint64_t length, Image& parent);

/// All of it, into a parent that gets the child's size, then closes the parent, as it does if it is
/// cancelled (kCancelled).
vmm::Result<void> MergeLayer(Image& child, Image& parent, const Progress& progress);

}  // namespace kvmbus::virtdev
