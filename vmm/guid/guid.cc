// SPDX-License-Identifier: Apache-2.0
#include "vmm/guid/guid.h"

#include <algorithm>

#include "vmm/os/entropy.h"

namespace kvmbus::vmm {

std::string Guid::ToString() const {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text(36, '-');
  for (size_t i = 0; i < 16; ++i) {
    text[internal::kGuidDigitOffset[i]] = kDigits[bytes[i] >> 4];
    text[internal::kGuidDigitOffset[i] + 1u] = kDigits[bytes[i] & 15];
  }
  return text;
}

std::optional<Guid> Guid::Parse(std::string_view text) {
  if (text.size() == 38 && text.front() == '{' && text.back() == '}') text = text.substr(1, 36);
  return internal::ParseGuidText(text);
}

std::optional<Guid> Guid::FromBytes(std::string_view bytes) {
  Guid guid;
  if (bytes.size() != guid.bytes.size()) return std::nullopt;
  std::copy(bytes.begin(), bytes.end(), guid.bytes.begin());
  return guid;
}

Guid Guid::Random() {
  Guid guid;
  FillRandom(guid.bytes);
  guid.bytes[7] = static_cast<uint8_t>((guid.bytes[7] & 0x0f) | 0x40);
  guid.bytes[8] = static_cast<uint8_t>((guid.bytes[8] & 0x3f) | 0x80);
  return guid;
}

}  // namespace kvmbus::vmm
