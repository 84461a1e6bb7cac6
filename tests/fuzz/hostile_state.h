// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a damaged or forged file has in place of a device's saved state.
#pragma once

#include <algorithm>
#include <string>

#include "tests/fuzz/fuzz_input.h"

namespace kvmbus::tests {

inline std::string TakeString(FuzzInput& input, size_t count) {
  const std::vector<uint8_t> bytes = input.Bytes(count);
  return {bytes.begin(), bytes.end()};
}

/// As the input has it: bytes of its own; `valid` with fields behind it, which a parser merges with
/// those before; or `valid` changed in a few places. Takes the rest of the input.
inline std::string HostileState(FuzzInput& input, std::string valid) {
  const uint8_t mode = input.Byte();
  if (mode % 3 == 0) return TakeString(input, SIZE_MAX);
  if (mode % 3 == 1) return valid + TakeString(input, SIZE_MAX);
  for (int edits = 0; edits < 16 && !input.empty(); ++edits) {
    const uint8_t how = input.Byte();
    const size_t at = input.Word() % (valid.size() + 1);
    const size_t count = 1 + how / 4 % 16;
    switch (how % 4) {
      case 0: {
        const std::string bytes = TakeString(input, count);
        valid.replace(at, bytes.size(), bytes);
        break;
      }
      case 1:
        valid.insert(at, TakeString(input, count));
        break;
      case 2:
        valid.erase(at, count);
        break;
      case 3:
        valid.resize(at);
        break;
    }
  }
  return valid;
}

}  // namespace kvmbus::tests
