// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a DVD drive answers (MMC): the bytes of its replies, from the little that they hang on.
#pragma once

#include <array>
#include <cstdint>
#include <tl/expected.hpp>
#include <vector>

#include "virtdev/scsi/scsi_mode.h"
#include "virtdev/scsi/scsi_protocol.h"
#include "vmm/guid/guid.h"

namespace kvmbus::virtdev::scsi {

inline constexpr uint32_t kDvdBlockBytes = 2048;

/// Each answer is whole, to be cut at the allocation length.
using DvdAnswer = tl::expected<std::vector<uint8_t>, Sense>;

std::vector<uint8_t> DvdInquiry();
/// `id` names the drive. Error: a page that drives do not have.
DvdAnswer DvdVpdPage(uint8_t page, const vmm::Guid& id);
ModePages DvdModePages(bool locked);
/// GET CONFIGURATION: the drive's features.
DvdAnswer DvdConfiguration(const Cdb& cdb, bool has_medium);
std::vector<uint8_t> DvdMechanismStatus(bool tray_open);

// Of a disc of `blocks` blocks; there is one in the drive.
DvdAnswer DvdToc(const Cdb& cdb, uint32_t blocks);
DvdAnswer DvdDiscInformation(const Cdb& cdb);
DvdAnswer DvdTrackInformation(const Cdb& cdb, uint32_t blocks);
DvdAnswer DvdStructure(const Cdb& cdb, uint32_t blocks);
DvdAnswer DvdPerformance(const Cdb& cdb, uint32_t blocks);
std::vector<uint8_t> DvdBufferCapacity();

}  // namespace kvmbus::virtdev::scsi
