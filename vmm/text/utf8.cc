// SPDX-License-Identifier: Apache-2.0
#include "vmm/text/utf8.h"

namespace kvmbus::vmm {
namespace {

bool IsContinuation(char c) { return (static_cast<uint8_t>(c) & 0xc0) == 0x80; }
bool IsControl(uint32_t code) { return code < 0x20 || (code >= 0x7f && code < 0xa0); }
bool IsSurrogate(uint32_t code) { return code >= 0xd800 && code < 0xe000; }

}  // namespace

std::optional<uint32_t> NextCodePoint(std::string_view text, size_t* at) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte((*at)++);
  if (first < 0x80) return first;
  const int more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
  if (first < 0xc2 || first > 0xf4 || text.size() - *at < static_cast<size_t>(more))
    return std::nullopt;
  uint32_t code = first & (0x3fu >> more);
  for (int i = 0; i < more; ++i) {
    const uint8_t next = byte((*at)++);
    if ((next & 0xc0) != 0x80) return std::nullopt;
    code = code << 6 | (next & 0x3f);
  }
  constexpr uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
  if (code < kLeast[more] || code > 0x10ffff || IsSurrogate(code)) return std::nullopt;
  return code;
}

bool IsPrintable(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const auto code = NextCodePoint(text, &at);
    if (!code || IsControl(*code)) return false;
  }
  return true;
}

std::string Printable(std::string_view text) {
  std::string printable;
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    const auto code = NextCodePoint(text, &at);
    if (!code) at = start + 1;  // what follows the byte may be text
    if (!code || IsControl(*code))
      printable += '?';
    else
      printable += text.substr(start, at - start);
  }
  return printable;
}

std::string TruncateUtf8(std::string_view text, size_t bytes) {
  if (text.size() <= bytes) return std::string(text);
  while (bytes > 0 && IsContinuation(text[bytes])) --bytes;
  return std::string(text.substr(0, bytes));
}

}  // namespace kvmbus::vmm
