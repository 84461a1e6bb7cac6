// SPDX-License-Identifier: Apache-2.0
#include "vmm/text/utf16.h"

#include "vmm/text/utf8.h"

namespace kvmbus::vmm {
namespace {

constexpr bool IsHighSurrogate(uint32_t unit) { return unit >= 0xd800 && unit < 0xdc00; }
constexpr bool IsLowSurrogate(uint32_t unit) { return unit >= 0xdc00 && unit < 0xe000; }

void AppendUtf8(uint32_t code, std::string* text) {
  const auto add = [text](uint32_t byte) { text->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    add(code);
  } else if (code < 0x800) {
    add(0xc0 | code >> 6);
    add(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    add(0xe0 | code >> 12);
    add(0x80 | (code >> 6 & 0x3f));
    add(0x80 | (code & 0x3f));
  } else {
    add(0xf0 | code >> 18);
    add(0x80 | (code >> 12 & 0x3f));
    add(0x80 | (code >> 6 & 0x3f));
    add(0x80 | (code & 0x3f));
  }
}

}  // namespace

std::optional<std::string> Utf16ToUtf8(std::span<const uint8_t> bytes, std::endian order) {
  if (bytes.size() % 2 != 0) return std::nullopt;
  const size_t high = order == std::endian::big ? 0 : 1;
  const auto unit = [&](size_t at) {
    return static_cast<uint32_t>(bytes[at + high] << 8 | bytes[at + 1 - high]);
  };
  std::string text;
  for (size_t at = 0; at < bytes.size(); at += 2) {
    uint32_t code = unit(at);
    if (code == 0) break;
    if (IsLowSurrogate(code)) return std::nullopt;
    if (IsHighSurrogate(code)) {
      at += 2;
      if (at >= bytes.size() || !IsLowSurrogate(unit(at))) return std::nullopt;
      code = 0x10000 + ((code - 0xd800) << 10 | (unit(at) - 0xdc00));
    }
    AppendUtf8(code, &text);
  }
  return text;
}

std::optional<std::vector<uint8_t>> Utf8ToUtf16(std::string_view text, std::endian order) {
  std::vector<uint8_t> bytes;
  const auto add = [&](uint32_t unit) {
    const auto high = static_cast<uint8_t>(unit >> 8), low = static_cast<uint8_t>(unit);
    bytes.push_back(order == std::endian::big ? high : low);
    bytes.push_back(order == std::endian::big ? low : high);
  };
  for (size_t at = 0; at < text.size();) {
    const auto code = NextCodePoint(text, &at);
    if (!code) return std::nullopt;
    if (*code < 0x10000) {
      add(*code);
    } else {
      add(0xd800 + ((*code - 0x10000) >> 10));
      add(0xdc00 + ((*code - 0x10000) & 0x3ff));
    }
  }
  return bytes;
}

}  // namespace kvmbus::vmm
