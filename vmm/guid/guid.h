// SPDX-License-Identifier: Apache-2.0
/// \file
/// Guid: 16 bytes in Windows' mixed-endian order, as VMBus, VHDX and ACPI carry them.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace kvmbus::vmm {

struct Guid {
  /// Data1 (u32), Data2 (u16), Data3 (u16) little-endian, then Data4's 8 bytes: the wire form
  /// itself.
  std::array<uint8_t, 16> bytes{};

  auto operator<=>(const Guid&) const = default;
  bool IsZero() const { return *this == Guid{}; }

  /// "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f".
  std::string ToString() const;

  /// Either case, with or without braces; nullopt for anything else.
  static std::optional<Guid> Parse(std::string_view text);

  /// A random (version 4) one from the host's entropy.
  static Guid Random();

  /// Its 16 bytes, as messages keep them; nullopt for another number of them.
  std::string ToBytes() const { return {bytes.begin(), bytes.end()}; }
  static std::optional<Guid> FromBytes(std::string_view bytes);
};

namespace internal {
constexpr int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

/// Byte i of the wire form stands at this hexadecimal digit of the 36-character text.
inline constexpr std::array<uint8_t, 16> kGuidDigitOffset = {6,  4,  2,  0,  11, 9,  16, 14,
                                                             19, 21, 24, 26, 28, 30, 32, 34};

constexpr std::optional<Guid> ParseGuidText(std::string_view text) {
  if (text.size() != 36) return std::nullopt;
  for (size_t dash : {8u, 13u, 18u, 23u}) {
    if (text[dash] != '-') return std::nullopt;
  }
  Guid guid;
  for (size_t i = 0; i < 16; ++i) {
    const int high = HexValue(text[kGuidDigitOffset[i]]);
    const int low = HexValue(text[kGuidDigitOffset[i] + 1u]);
    if (high < 0 || low < 0) return std::nullopt;
    guid.bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return guid;
}
}  // namespace internal

/// A GUID written in the source: MakeGuid("57164f39-9115-4e78-ab55-382f3bd5422d"). A typo does not
/// compile.
consteval Guid MakeGuid(std::string_view text) { return internal::ParseGuidText(text).value(); }

}  // namespace kvmbus::vmm
