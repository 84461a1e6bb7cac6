// SPDX-License-Identifier: Apache-2.0
/// \file
/// Copying a disk into an empty image.
#pragma once

#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/tools/disk_tools.h"

namespace kvmbus::virtdev {

/// Several reads and writes under way; what reads as zeroes is not written. Closes `to`. kCancelled
/// if `progress`, which is called on the caller's thread, said so.
vmm::Result<void> CopyDisk(Chain& from, Image& to, const Progress& progress);

}  // namespace kvmbus::virtdev
