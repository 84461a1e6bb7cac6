// SPDX-License-Identifier: Apache-2.0
/// \file
/// The host's random bytes.
#pragma once

#include <cstdint>
#include <span>

namespace kvmbus::vmm {

/// getrandom(2); never fails on a kernel that we run on.
void FillRandom(std::span<uint8_t> buffer);

}  // namespace kvmbus::vmm
