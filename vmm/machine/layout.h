// SPDX-License-Identifier: Apache-2.0
/// \file
/// Where things are in a machine without firmware (direct Linux boot). What a guest can see here is
/// ABI.
#pragma once

#include <cstdint>
#include <vector>

#include "vmm/memory/guest_memory.h"

namespace kvmbus::vmm {

/// Guest-physical addresses.
inline constexpr uint64_t kGenerationIdGpa =
    0x9f000;  ///< VM generation id: 16 bytes in a reserved page
inline constexpr uint64_t kAcpiTablesGpa = 0xe0000;  ///< RSDP first, then the tables; to kSmbiosGpa
inline constexpr uint64_t kSmbiosGpa =
    0xf0000;  ///< entry point first, then the structures; to 1 MiB
inline constexpr uint64_t kLowMmioGpa =
    0xf8000000;  ///< VMBus's low MMIO window starts where low RAM ends at most
inline constexpr uint64_t kLowMmioEnd = 0xfec00000;  ///< exclusive
inline constexpr uint64_t kIoApicGpa = 0xfec00000;
inline constexpr uint64_t kLocalApicGpa = 0xfee00000;
inline constexpr uint64_t kHighRamGpa = 0x100000000;
inline constexpr uint64_t kHighMmioBytes = 512ull << 20;

/// I/O ports.
inline constexpr uint16_t kRtcPort = 0x70;  ///< index, data
inline constexpr uint16_t kCom1Port = 0x3f8;
inline constexpr uint16_t kPowerPort = 0x400;  ///< ACPI PM block; register offsets below
inline constexpr uint16_t kPowerPortBytes = 0x40;
inline constexpr uint16_t kPm1StatusOffset = 0x00;   ///< u16
inline constexpr uint16_t kPm1EnableOffset = 0x02;   ///< u16
inline constexpr uint16_t kPm1ControlOffset = 0x04;  ///< u16: SLP_TYP 12:10, SLP_EN 13
inline constexpr uint16_t kPmTimerOffset = 0x08;     ///< u32, 32 bits at 3.579545 MHz
inline constexpr uint16_t kGpe0StatusOffset = 0x0c;  ///< u16
inline constexpr uint16_t kGpe0EnableOffset = 0x0e;  ///< u16
inline constexpr uint16_t kResetOffset = 0x33;       ///< u8: writing kResetValue resets
inline constexpr uint8_t kResetValue = 1;
inline constexpr uint8_t kSleepTypeS5 = 0;  ///< SLP_TYP of soft-off

/// Interrupts (GSI = ISA IRQ).
inline constexpr uint8_t kCom1Irq = 4;
inline constexpr uint8_t kRtcIrq = 8;
inline constexpr uint8_t kSciIrq = 9;           ///< level, active high
inline constexpr uint8_t kGenerationIdGpe = 0;  ///< \_GPE._E00

struct MemoryLayout {
  std::vector<MemoryRange> ram;  ///< low, then high if any
  MemoryRange low_mmio{};        ///< for VMBus devices
  MemoryRange high_mmio{};       ///< above the end of RAM, 1 GiB aligned
};

/// `ram_bytes` is a multiple of 2 MiB and at least 16 MiB (checked by the configuration's limits).
MemoryLayout ComputeMemoryLayout(uint64_t ram_bytes);

}  // namespace kvmbus::vmm
