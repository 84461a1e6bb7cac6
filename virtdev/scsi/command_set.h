// SPDX-License-Identifier: Apache-2.0
/// \file
/// The commands that a disk has: how reservations treat each, and REPORT SUPPORTED OPERATION CODES.
#pragma once

#include <array>
#include <cstdint>
#include <tl/expected.hpp>
#include <vector>

#include "virtdev/scsi/persistent_reservations.h"
#include "virtdev/scsi/scsi_protocol.h"

namespace kvmbus::virtdev::scsi {

/// What the command does, for the rules of reservations; a write for one that disks do not have.
PersistentReservations::Access DiskAccessOf(const std::array<uint8_t, 16>& cdb);

/// The whole answer, to be cut at the allocation length.
tl::expected<std::vector<uint8_t>, Sense> ReportOperationCodes(const std::array<uint8_t, 16>& cdb,
                                                               bool can_unmap);

}  // namespace kvmbus::virtdev::scsi
