// SPDX-License-Identifier: Apache-2.0
#include "vmm/text/utf8.h"

#include <gtest/gtest.h>

namespace kvmbus::vmm {
namespace {

TEST(Utf8, IsCutAtACharacter) {
  const std::string text = "aä€𝄞";  // of 1, 2, 3 and 4 bytes
  const size_t ends[] = {0, 1, 3, 6, 10};
  for (size_t bytes = 0; bytes <= text.size() + 1; ++bytes) {
    size_t expected = 0;
    for (const size_t end : ends) expected = end <= bytes ? end : expected;
    EXPECT_EQ(TruncateUtf8(text, bytes), text.substr(0, expected)) << bytes;
  }
  EXPECT_EQ(TruncateUtf8("", 0), "");
}

TEST(Utf8, WhatATerminalWouldObeyIsNotPrintable) {
  for (const char* good : {"", "a b~", "Веб", "𝄞", "\u00a0"}) {
    EXPECT_TRUE(IsPrintable(good)) << good;
    EXPECT_EQ(Printable(good), good);
  }
  const std::pair<std::string, const char*> kBad[] = {
      {"a\x1b[2J", "a?[2J"}, {"\n\x7f", "??"},       {std::string("\0x", 2), "?x"},
      {"\u009b31m", "?31m"}, {"\xd0", "?"},          {"\xd0z", "?z"},
      {"\xc0\x9b", "??"},    {"\xed\xa0\x80", "???"}};
  for (const auto& [bad, shown] : kBad) {
    EXPECT_FALSE(IsPrintable(bad)) << shown;
    EXPECT_EQ(Printable(bad), shown);
  }
}

}  // namespace
}  // namespace kvmbus::vmm
