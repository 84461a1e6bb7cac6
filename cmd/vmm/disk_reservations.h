// SPDX-License-Identifier: Apache-2.0
/// \file
/// Where a disk keeps the reservations that outlive a loss of power: a small file beside its image.
#pragma once

#include <memory>
#include <string>

#include "virtdev/scsi/persistent_reservations.h"
#include "vmm/result/result.h"

namespace kvmbus::cmd {

/// Those of the disk at `path`, from `<path>.reservations` if there is one. The file is there only
/// while an initiator wants them kept. kDataLoss: it is damaged.
vmm::Result<std::shared_ptr<virtdev::PersistentReservations>> OpenReservations(
    const std::string& path);

}  // namespace kvmbus::cmd
