// SPDX-License-Identifier: Apache-2.0
/// \file
/// Registers of the 16550 UART. Reference: National Semiconductor PC16550D data sheet, table II.
#pragma once

#include <cstdint>

namespace kvmbus::virtdev::uart {

// Offsets.
inline constexpr unsigned kRbrThr = 0;  ///< DLL while LCR.DLAB
inline constexpr unsigned kIer = 1;     ///< DLM while LCR.DLAB
inline constexpr unsigned kIirFcr = 2;
inline constexpr unsigned kLcr = 3;
inline constexpr unsigned kMcr = 4;
inline constexpr unsigned kLsr = 5;
inline constexpr unsigned kMsr = 6;
inline constexpr unsigned kScr = 7;

inline constexpr uint8_t kIerReceive = 0x01;
inline constexpr uint8_t kIerTransmit = 0x02;
inline constexpr uint8_t kIerLine = 0x04;
inline constexpr uint8_t kIirNone = 0x01;
inline constexpr uint8_t kIirTransmit = 0x02;
inline constexpr uint8_t kIirReceive = 0x04;
inline constexpr uint8_t kIirLine = 0x06;
inline constexpr uint8_t kIirTimeout = 0x0c;
inline constexpr uint8_t kIirFifosEnabled = 0xc0;
inline constexpr uint8_t kFcrEnable = 0x01;
inline constexpr uint8_t kFcrClearReceive = 0x02;
inline constexpr uint8_t kFcrTriggerMask = 0xc0;
inline constexpr uint8_t kLcrDlab = 0x80;
inline constexpr uint8_t kMcrDtr = 0x01;
inline constexpr uint8_t kMcrRts = 0x02;
inline constexpr uint8_t kMcrOut1 = 0x04;
inline constexpr uint8_t kMcrOut2 = 0x08;
inline constexpr uint8_t kMcrLoop = 0x10;
inline constexpr uint8_t kLsrDataReady = 0x01;
inline constexpr uint8_t kLsrOverrun = 0x02;
inline constexpr uint8_t kLsrThrEmpty = 0x20;
inline constexpr uint8_t kLsrTransmitterEmpty = 0x40;
inline constexpr uint8_t kMsrCts = 0x10;
inline constexpr uint8_t kMsrDsr = 0x20;
inline constexpr uint8_t kMsrRi = 0x40;
inline constexpr uint8_t kMsrDcd = 0x80;

}  // namespace kvmbus::virtdev::uart
