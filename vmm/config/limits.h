// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a VM's configuration may say, and the check of it.
#pragma once

#include <cstdint>

#include "config/vm.pb.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

struct GenerationLimits {
  uint32_t max_vcpus;
  uint64_t max_memory_bytes;
};
/// Hyper-V's: generation 1 has 64 processors and 1 TiB, generation 2 240 and 12 TiB.
GenerationLimits LimitsOf(uint32_t generation);

inline constexpr uint64_t kMinMemoryBytes = 32ull << 20;
inline constexpr uint64_t kMemoryStepBytes = 2ull << 20;
inline constexpr uint32_t kMaxScsiControllers = 4;
inline constexpr uint32_t kMaxLuns = 64;
inline constexpr size_t kMaxNameBytes = 100;
/// x86 Linux's COMMAND_LINE_SIZE (arch/x86/include/asm/setup.h) without its NUL.
inline constexpr size_t kMaxCommandLineBytes = 2047;

/// Fills in what a user may leave out (ids, generation 2, one controller, version 6.2).
void ApplyDefaults(config::Vm* vm);

/// One line that names the VM, the field and what is allowed. kOutOfRange for a number beyond a
/// limit, kInvalidArgument for the rest.
Result<void> ValidateConfig(const config::Vm& vm);

/// One disk against the VM's other disks.
Result<void> ValidateDisk(const config::Vm& vm, const config::Disk& disk);

}  // namespace kvmbus::vmm
