// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the controller answers itself, for no disk or for all: REPORT LUNS and absent units.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "virtdev/scsi/scsi_protocol.h"

namespace kvmbus::virtdev {

/// REPORT LUNS' data, ascending, for the units of `luns` (bit n: LUN n is there).
std::vector<uint8_t> ReportLunsData(uint64_t luns);
/// How many bytes of it the guest has room for; 0 if fewer than a header's.
size_t ReportLunsAllocation(const std::array<uint8_t, 16>& cdb);

}  // namespace kvmbus::virtdev
