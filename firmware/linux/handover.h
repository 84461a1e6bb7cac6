// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a kernel is told at its start, in the form of either protocol: boot_params (the "zero
/// page") for the 64-bit entry, hvm_start_info for PVH.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "firmware/linux/bzimage.h"
#include "firmware/linux/low_memory.h"

namespace kvmbus::firmware {

/// The setup header to hand over: a bzImage's own, or for an ELF kernel one that says what every
/// Linux kernel since 3.8 can do.
class SetupHeader {
 public:
  SetupHeader();
  explicit SetupHeader(const BzImage& image);

  uint32_t cmdline_size() const { return cmdline_size_; }
  uint32_t initrd_addr_max() const { return initrd_addr_max_; }
  const std::array<uint8_t, setup::kEnd - setup::kHeader>& bytes() const { return bytes_; }

 private:
  std::array<uint8_t, setup::kEnd - setup::kHeader> bytes_{};
  uint32_t cmdline_size_ = 2047;
  uint32_t initrd_addr_max_ = 0x7fffffff;
};

struct Handover {
  SetupHeader header;
  std::vector<MapEntry> memory_map;
  uint64_t command_line_gpa = 0;
  uint64_t initrd_gpa = 0;
  uint64_t initrd_bytes = 0;  ///< 0: none
  uint64_t rsdp_gpa = 0;
};

/// Writes the page at kBootParamsGpa.
vmm::Result<void> WriteBootParams(vmm::GuestMemory& memory, const Handover& handover);

/// Writes the page at kPvhStartInfoGpa.
vmm::Result<void> WritePvhStartInfo(vmm::GuestMemory& memory, const Handover& handover);

}  // namespace kvmbus::firmware
