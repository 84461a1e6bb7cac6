// SPDX-License-Identifier: Apache-2.0
/// \file
/// A larger disk in the same VHDX file.
#pragma once

#include <cstdint>

#include "virtdev/disk/vhdx/vhdx_file.h"
#include "virtdev/disk/vhdx/vhdx_journal.h"

namespace kvmbus::virtdev::vhdx {

/// What one commit makes a larger disk of.
struct Growth {
  std::vector<Journal::Page> pages;
  Region bat;        ///< where the BAT is afterwards
  BlockTable table;  ///< the BAT
  bool flush_first;  ///< the file has something new that must be durable before the commit
};

/// kInvalidArgument, kOutOfRange: a size that is not allowed.
vmm::Result<void> CheckNewSize(const DiskMetadata& disk, uint64_t disk_bytes);
/// Copies the BAT to the file's end where its region is too small, clears what lies behind the
/// disk's end, allocates a fixed disk's new blocks, and changes nothing else. All metadata are in
/// place in the file. A failure, as where the host lacks the space, leaves the file as it was.
vmm::Result<Growth> PlanGrowth(const VhdxFile& vhdx, const BlockTable& table, uint64_t disk_bytes);

/// Gives the disk `disk_bytes`, through the log: after a crash it has the old size or the new one.
/// The BAT moves to the file's end where its region is too small; a fixed disk's new blocks are
/// allocated there, all of them. `vhdx` was opened for writing;
/// its identity changes, so that children of it are lost. Errors as CheckNewSize's.
vmm::Result<void> GrowDisk(const VhdxFile& vhdx, uint64_t disk_bytes);

}  // namespace kvmbus::virtdev::vhdx
