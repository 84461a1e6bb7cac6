// SPDX-License-Identifier: Apache-2.0
/// \file
/// SMBIOS tables (DSP0134 3.2) of a machine without firmware, with the strings that a guest on
/// Hyper-V finds there. A 64-bit entry point and an older 32-bit one lead to the same structures.
#pragma once

#include <cstdint>
#include <string>

#include "vmm/guid/guid.h"
#include "vmm/memory/guest_memory.h"

namespace kvmbus::firmware {

struct SmbiosParams {
  unsigned generation = 2;  ///< 1 or 2: how the BIOS calls itself
  vmm::Guid uuid;           ///< the VM's, as the product's
  std::string bios_serial;  ///< of the system, board, chassis; any of them may be empty
  std::string board_serial;
  std::string chassis_serial;
  std::string chassis_asset_tag;
  uint32_t sockets = 1;  ///< the CPUs are spread evenly over these
  uint32_t cpu_count = 1;
  uint64_t ram_bytes = 0;
};

/// Writes the entry points at kSmbiosGpa and the structures behind them. Call it at every reset.
vmm::Result<void> WriteSmbios(vmm::GuestMemory& memory, const SmbiosParams& params);

}  // namespace kvmbus::firmware
