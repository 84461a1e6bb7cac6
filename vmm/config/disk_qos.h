// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a disk's Storage QoS may be, and how it is changed.
#pragma once

#include <cstdint>

#include "config/vm.pb.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

// A request of the largest size, 1 MiB, ends before a guest gives it up: in 16 s at these.
inline constexpr uint64_t kMinMaxIops = 8;
inline constexpr uint64_t kMinMaxBytesPerSecond = 64ull << 10;
inline constexpr uint64_t kMaxIops = 1'000'000'000;  ///< Hyper-V's
inline constexpr uint64_t kMaxBytesPerSecond = 1ull << 40;

/// As ValidateDisk, of which it is a part.
Result<void> ValidateDiskQos(const config::Vm& vm, const config::Disk& disk);

void ChangeDiskQos(const config::DiskQosChange& change, config::DiskQos* qos);

}  // namespace kvmbus::vmm
