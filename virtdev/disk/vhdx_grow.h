// SPDX-License-Identifier: Apache-2.0
/// \file
/// A larger disk in the same VHDX file.
#pragma once

#include <cstdint>

#include "virtdev/disk/vhdx_file.h"

namespace kvmbus::virtdev::vhdx {

/// Gives the disk `disk_bytes`, through the log: after a crash it has the old size or the new one.
/// The BAT moves to the file's end where its region is too small. `vhdx` was opened for writing;
/// its identity changes, so that children of it are lost. kInvalidArgument, kOutOfRange: a size
/// that is not allowed; kUnimplemented: a fixed disk.
vmm::Result<void> GrowDisk(const VhdxFile& vhdx, uint64_t disk_bytes);

}  // namespace kvmbus::virtdev::vhdx
