// SPDX-License-Identifier: Apache-2.0
/// \file
/// RemoteScsiDisk: a logical unit whose commands another process executes.
#pragma once

#include <memory>

#include "virtdev/scsi/scsi_disk.h"
#include "virtdev/scsi/scsi_unit.h"
#include "virtdev/shared_disk/remote_disk.h"

namespace kvmbus::virtdev {

/// One initiator's view of a shared disk. It answers nothing itself but what the loss of the
/// disk's owner means: a unit attention, and an error for a flush that came too late.
class RemoteScsiDisk final : public ScsiUnit {
 public:
  explicit RemoteScsiDisk(std::shared_ptr<RemoteDisk> disk)
      : disk_(std::move(disk)), sector_bytes_(disk_->info().logical_sector_bytes) {}

  const std::shared_ptr<RemoteDisk>& io() const { return disk_; }

  // Home: the main loop, while no command is under way.

  /// As after power-on.
  void Reset();
  /// What is kept over a save; the reservations are the owner's. kUnavailable: there is no owner
  /// now.
  vmm::Result<ScsiDisk::State> Save();
  vmm::Result<void> Restore(const ScsiDisk::State& state);

 private:
  Step Dispatch(ScsiCommand& command) override;
  Step Conclude(ScsiCommand& command);

  const std::shared_ptr<RemoteDisk> disk_;
  const uint64_t sector_bytes_;
};

}  // namespace kvmbus::virtdev
