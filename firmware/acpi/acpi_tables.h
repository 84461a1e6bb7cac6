// SPDX-License-Identifier: Apache-2.0
/// \file
/// ACPI tables of a machine without firmware (vmm/machine/layout.h): RSDP, XSDT, FADT, FACS, MADT,
/// DSDT. The same parameters give the same bytes; what a guest sees in them is ABI.
#pragma once

#include <cstdint>
#include <vector>

#include "vmm/memory/guest_memory.h"

namespace kvmbus::firmware {

/// More would not fit between kAcpiTablesGpa and kSmbiosGpa.
inline constexpr uint32_t kMaxAcpiCpus = 1024;

struct AcpiParams {
  uint32_t cpu_count = 1;
  /// One for each CPU; empty: the CPU's number. From 255 on the CPU must have an x2APIC.
  std::vector<uint32_t> apic_ids;
  vmm::MemoryRange low_mmio{};   ///< VMBus's window below 4 GiB; size 0: none
  vmm::MemoryRange high_mmio{};  ///< above the RAM's end
  bool com1 = false;
};

/// Writes the tables, RSDP first, at kAcpiTablesGpa. Call it at every reset: a guest may have
/// written there.
vmm::Result<void> WriteAcpiTables(vmm::GuestMemory& memory, const AcpiParams& params);

}  // namespace kvmbus::firmware
