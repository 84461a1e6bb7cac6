// SPDX-License-Identifier: Apache-2.0
#include "vmm/machine/layout.h"

#include <algorithm>

namespace kvmbus::vmm {

MemoryLayout ComputeMemoryLayout(uint64_t ram_bytes) {
  constexpr uint64_t kGiB = 1ull << 30;
  MemoryLayout layout;
  const uint64_t low = std::min(ram_bytes, kLowMmioGpa);
  layout.ram.push_back({0, low});
  uint64_t end = kHighRamGpa;
  if (ram_bytes > low) {
    layout.ram.push_back({kHighRamGpa, ram_bytes - low});
    end += ram_bytes - low;
  }
  layout.low_mmio = {kLowMmioGpa, kLowMmioEnd - kLowMmioGpa};
  layout.high_mmio = {(end + kGiB - 1) & ~(kGiB - 1), kHighMmioBytes};
  return layout;
}

}  // namespace kvmbus::vmm
