// SPDX-License-Identifier: Apache-2.0
/// \file
/// BootState: the registers that the boot processor starts with.
#pragma once

#include <cstdint>

namespace kvmbus::vmm {

struct BootState {
  enum class Mode {
    kReset,        ///< the architecture's reset vector; the fields below are ignored
    kProtected32,  ///< flat 32-bit, paging off, CR4 0 (PVH)
    kLong64,       ///< 64-bit, paging on with cr3, interrupts off (Linux 64-bit boot protocol)
  };
  Mode mode = Mode::kReset;
  uint64_t rip = 0;
  uint64_t rsi = 0;  ///< kLong64: boot_params
  uint64_t rbx = 0;  ///< kProtected32: hvm_start_info
  uint64_t rsp = 0;
  uint64_t cr3 = 0;
  /// A GDT in guest memory: CS and DS are loaded from it as flat segments whatever it says.
  uint64_t gdt_base = 0;
  uint16_t gdt_limit = 0;
  uint16_t cs_selector = 0x10;
  uint16_t ds_selector = 0x18;
};

}  // namespace kvmbus::vmm
