// SPDX-License-Identifier: Apache-2.0
/// \file
/// A larger or smaller disk in the same VHD file.
#pragma once

#include <cstdint>
#include <memory>

#include "virtdev/disk/block_file.h"

namespace kvmbus::virtdev::vhd {

/// Gives the disk of a fixed or dynamic image `disk_bytes`. After a crash it has the old size or
/// the new one; what is new reads as zeroes. Of a smaller disk the caller knows that nobody needs
/// what lies behind its end. kInvalidArgument, kOutOfRange: a size that is not allowed, or a
/// differencing image, which has its parent's size.
vmm::Result<void> ResizeVhd(std::unique_ptr<BlockFile> file, uint64_t disk_bytes);

}  // namespace kvmbus::virtdev::vhd
