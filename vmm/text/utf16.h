// SPDX-License-Identifier: Apache-2.0
/// \file
/// The texts in Windows' files: UTF-16 in either byte order there, UTF-8 here.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvmbus::vmm {

/// Up to the first NUL. nullopt for an odd number of bytes and for lone surrogates.
std::optional<std::string> Utf16ToUtf8(std::span<const uint8_t> bytes, std::endian order);
/// Without a NUL. nullopt for what is no UTF-8.
std::optional<std::vector<uint8_t>> Utf8ToUtf16(std::string_view text, std::endian order);

}  // namespace kvmbus::vmm
