// SPDX-License-Identifier: Apache-2.0
/// \file
/// Upper and lower case of ASCII letters, as ids and names of files have them; other bytes stay.
#pragma once

#include <string>
#include <string_view>

namespace kvmbus::vmm {

std::string UpperCase(std::string_view text);
std::string LowerCase(std::string_view text);

}  // namespace kvmbus::vmm
