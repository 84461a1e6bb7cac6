// SPDX-License-Identifier: Apache-2.0
/// \file
/// UTF-8 that comes from anybody and is shown to people, or has to fit somewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace kvmbus::vmm {

/// The code point at `at`, which moves on; nullopt for what is not the shortest form of one.
std::optional<uint32_t> NextCodePoint(std::string_view text, size_t* at);

/// UTF-8 without control characters, those of ISO 8859-1 among them: a terminal obeys these too.
bool IsPrintable(std::string_view text);
/// Whatever of it is not becomes a question mark.
std::string Printable(std::string_view text);

/// Of UTF-8 the first characters, as many as `bytes` hold.
std::string TruncateUtf8(std::string_view text, size_t bytes);

}  // namespace kvmbus::vmm
