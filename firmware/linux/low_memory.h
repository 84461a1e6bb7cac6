// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a direct boot leaves below 1 MiB beside the firmware tables: descriptors, page tables, the
/// command line, and the memory map that the kernel is told.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "vmm/hypervisor/boot_state.h"
#include "vmm/machine/layout.h"

namespace kvmbus::firmware {

inline constexpr uint64_t kGdtGpa = 0x500;
inline constexpr uint64_t kPvhStartInfoGpa = 0x6000;  ///< one page: start info, modules, map
inline constexpr uint64_t kBootParamsGpa = 0x7000;    ///< one page
inline constexpr uint64_t kPageTablesGpa = 0x9000;    ///< six pages
inline constexpr uint64_t kStackTopGpa = 0x20000;     ///< also the command line
inline constexpr uint64_t kCommandLineGpa = 0x20000;
inline constexpr uint64_t kCommandLineRoom = 0x10000;

/// The memory map's entries, as E820 and PVH number them.
struct MapEntry {
  enum Type : uint32_t { kRam = 1, kReserved = 2 };
  uint64_t gpa;
  uint64_t size;
  Type type;
  bool operator==(const MapEntry&) const = default;
};

/// In ascending order, without overlap. The generation id's page, the ACPI tables and SMBIOS are
/// reserved: the kernel must keep them as they are.
std::vector<MapEntry> MakeMemoryMap(const vmm::MemoryLayout& layout);

/// Writes the descriptor table, and for 64-bit mode page tables that map the first 4 GiB to
/// themselves; fills `boot`'s selectors, tables and stack.
vmm::Result<void> WriteProcessorTables(vmm::GuestMemory& memory, vmm::BootState::Mode mode,
                                       vmm::BootState* boot);

/// Writes the command line with its terminator; `limit` is the kernel's, without it.
vmm::Result<void> WriteCommandLine(vmm::GuestMemory& memory, std::string_view text, uint64_t limit);

/// Write that cannot miss unless the VM has less than 1 MiB.
vmm::Result<void> WriteLow(vmm::GuestMemory& memory, uint64_t gpa, const void* bytes, size_t size);

}  // namespace kvmbus::firmware
