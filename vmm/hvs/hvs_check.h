// SPDX-License-Identifier: Apache-2.0
/// \file
/// A strict judge of HyperVStorage containers, for tests: written from the format's description
/// apart from reader and writer.
#pragma once

#include <string>
#include <vector>

namespace kvmbus::vmm {

/// What is wrong with the container, one line each: "key table 2 at 0x4000: ...". Empty: nothing
/// is, Windows' own loader should take it. At most 100.
std::vector<std::string> CheckHvs(int fd);

}  // namespace kvmbus::vmm
