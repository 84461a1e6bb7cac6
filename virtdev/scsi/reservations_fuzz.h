// SPDX-License-Identifier: Apache-2.0
/// \file
/// What fuzz targets ask of persistent reservations.
#pragma once

#include <string>

#include "state/scsi.pb.h"
#include "virtdev/scsi/persistent_reservations.h"

namespace kvmbus::virtdev {

/// Saved and restored elsewhere, they are the same.
inline void CheckReservations(const PersistentReservations& rules) {
  state::ScsiReservations saved, again;
  rules.Save(&saved);
  PersistentReservations other([](const std::string&) { return true; });
  KVMBUS_ASSERT(other.Restore(saved).ok());
  other.Save(&again);
  KVMBUS_ASSERT(saved.SerializeAsString() == again.SerializeAsString());
}

}  // namespace kvmbus::virtdev
