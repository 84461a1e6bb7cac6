// SPDX-License-Identifier: Apache-2.0
/// \file
/// What INQUIRY answers: the standard data and the vital product data pages of a disk.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "virtdev/disk/disk_io.h"

namespace kvmbus::virtdev::scsi {

inline constexpr size_t kInquiryBytes = 96;
using InquiryData = std::array<uint8_t, kInquiryBytes>;

/// Of a disk that is there.
InquiryData DiskInquiry();
/// Of a unit that is not: a qualifier that says so, but SPC-3 still, for guests then use REPORT
/// LUNS. `named` keeps vendor and product, as Hyper-V does for LUN 0.
InquiryData AbsentInquiry(bool named);

/// A vital product data page, or nothing for one that disks do not have.
std::optional<std::vector<uint8_t>> DiskVpdPage(uint8_t page, const DiskInfo& info);

/// Limits that page B0 announces and the commands keep.
inline constexpr uint32_t kMaxUnmapDescriptors = 4096;
inline constexpr uint64_t kMaxWriteSameBytes = 8u << 20;

}  // namespace kvmbus::virtdev::scsi
