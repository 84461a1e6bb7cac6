// SPDX-License-Identifier: Apache-2.0
/// \file
/// Bytes as XML carries them.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace kvmbus::vmm {

/// On one line, padded.
std::string ToBase64(std::string_view bytes);
/// White space anywhere; nullopt for anything else that is not Base64.
std::optional<std::string> FromBase64(std::string_view text);

}  // namespace kvmbus::vmm
