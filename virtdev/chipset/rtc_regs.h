// SPDX-License-Identifier: Apache-2.0
/// \file
/// Registers of the MC146818 clock. Reference: Motorola MC146818A data sheet.
#pragma once

#include <cstdint>

namespace kvmbus::virtdev::rtc {

inline constexpr uint8_t kSeconds = 0x00;
inline constexpr uint8_t kMinutes = 0x02;
inline constexpr uint8_t kHours = 0x04;
inline constexpr uint8_t kDayOfWeek = 0x06;
inline constexpr uint8_t kDayOfMonth = 0x07;
inline constexpr uint8_t kMonth = 0x08;
inline constexpr uint8_t kYear = 0x09;
inline constexpr uint8_t kRegisterA = 0x0a;
inline constexpr uint8_t kRegisterB = 0x0b;
inline constexpr uint8_t kRegisterC = 0x0c;
inline constexpr uint8_t kRegisterD = 0x0d;
inline constexpr uint8_t kCentury = 0x32;

inline constexpr uint8_t kAUpdateInProgress = 0x80;
inline constexpr uint8_t kADefault = 0x26;  ///< 32.768 kHz, 1024 Hz
inline constexpr uint8_t kBSet = 0x80;
inline constexpr uint8_t kBBinary = 0x04;
inline constexpr uint8_t kB24Hours = 0x02;
inline constexpr uint8_t kDValid = 0x80;
inline constexpr uint8_t kHourPm = 0x80;

}  // namespace kvmbus::virtdev::rtc
