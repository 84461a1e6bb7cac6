// SPDX-License-Identifier: Apache-2.0
/// \file
/// A smaller disk in the same VHDX file.
#pragma once

#include <cstdint>

#include "virtdev/disk/vhdx/vhdx_file.h"

namespace kvmbus::virtdev::vhdx {

/// Gives the disk `disk_bytes`, less than it has, through the log: after a crash it has the old
/// size or the new one. What lies behind its new end is lost; the caller knows that nobody needs
/// it. Blocks there are given up; the file gets shorter where they lie at its end. `vhdx` was
/// opened for writing; its identity changes. kInvalidArgument: a size that is not allowed, or a
/// differencing disk.
vmm::Result<void> ShrinkDisk(const VhdxFile& vhdx, uint64_t disk_bytes);

}  // namespace kvmbus::virtdev::vhdx
