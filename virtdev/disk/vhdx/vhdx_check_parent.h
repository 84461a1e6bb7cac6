// SPDX-License-Identifier: Apache-2.0
/// \file
/// The strict check's own reading of parent locators and of sector bitmaps; it shares no code with
/// the driver.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "virtdev/disk/image.h"

namespace kvmbus::virtdev::check {

struct Locator {
  ParentReference parent;  ///< usable if there are no errors
  std::vector<std::string> errors;
};
Locator ReadLocator(std::span<const uint8_t> item);

/// How many of a bitmap's bits [first, first + count) are set; the lowest bit of a byte comes
/// first.
uint64_t CountBits(std::span<const uint8_t> bitmap, uint64_t first, uint64_t count);

}  // namespace kvmbus::virtdev::check
