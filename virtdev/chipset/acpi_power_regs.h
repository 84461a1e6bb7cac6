// SPDX-License-Identifier: Apache-2.0
/// \file
/// Bits of the ACPI fixed hardware. Reference: ACPI 6.4, section 4.8.3; offsets are in
/// vmm/machine/layout.h.
#pragma once

#include <cstdint>

namespace kvmbus::virtdev::acpi {

inline constexpr uint16_t kTmrSts = 1u << 0;
inline constexpr uint16_t kGblSts = 1u << 5;
inline constexpr uint16_t kPwrBtnSts = 1u << 8;
inline constexpr uint16_t kRtcSts = 1u << 10;
inline constexpr uint16_t kWakSts = 1u << 15;
inline constexpr uint16_t kPm1StatusMask = kTmrSts | kGblSts | kPwrBtnSts | kRtcSts | kWakSts;
inline constexpr uint16_t kPm1EnableMask = kTmrSts | kGblSts | kPwrBtnSts | kRtcSts;
inline constexpr uint16_t kSciEn = 1u << 0;
inline constexpr unsigned kSlpTypShift = 10;
inline constexpr uint16_t kSlpTypMask = 7u << kSlpTypShift;
inline constexpr uint16_t kSlpEn = 1u << 13;  ///< write-only
inline constexpr uint64_t kPmTimerHz = 3'579'545;

}  // namespace kvmbus::virtdev::acpi
