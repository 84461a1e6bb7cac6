// SPDX-License-Identifier: Apache-2.0
/// \file
/// The parent locator of a differencing VHDX file: its parent's identity and where to look for it.
/// Reference: [MS-VHDX] section 2.6.2.6.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "virtdev/disk/image.h"

namespace kvmbus::virtdev::vhdx {

/// Longer ones are refused: our limit, not the format's.
inline constexpr uint32_t kMaxLocatorBytes = 64u << 10;

/// Checks all of a metadata item; keys that are unknown are skipped. kDataLoss says what is wrong,
/// kUnimplemented that it is of another type.
vmm::Result<ParentReference> ParseParentLocator(std::span<const uint8_t> item);

/// Builds the metadata item for `parent`. kInvalidArgument: a path that is too long, or not UTF-8.
vmm::Result<std::vector<uint8_t>> BuildParentLocator(const ParentReference& parent);

}  // namespace kvmbus::virtdev::vhdx
