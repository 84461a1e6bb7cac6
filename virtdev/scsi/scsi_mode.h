// SPDX-License-Identifier: Apache-2.0
/// \file
/// Mode parameters: pages that the guest may read and may not change.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <tl/expected.hpp>
#include <vector>

#include "virtdev/scsi/scsi_protocol.h"

namespace kvmbus::virtdev::scsi {

using Cdb = std::array<uint8_t, 16>;
/// As it is now: code, length, body.
using ModePage = std::vector<uint8_t>;
/// Ascending.
using ModePages = std::vector<ModePage>;

/// Header and a few pages; a longer list cannot be one that changes nothing.
inline constexpr size_t kMaxModeListBytes = 256;

/// Caching and control.
ModePages DiskModePages();

/// The whole answer to MODE SENSE(6) or (10), to be cut at the allocation length. `device` is the
/// header's device-specific byte.
tl::expected<std::vector<uint8_t>, Sense> ModeSenseData(const Cdb& cdb, const ModePages& pages,
                                                        uint8_t device);
/// How many bytes of it the guest has room for.
size_t ModeAllocationLength(const Cdb& cdb);

/// kNoSense if MODE SELECT(6) or (10) with this parameter list changes nothing.
Sense CheckModeSelect(const Cdb& cdb, std::span<const uint8_t> list, const ModePages& pages);

}  // namespace kvmbus::virtdev::scsi
