// SPDX-License-Identifier: Apache-2.0
#include "vmm/text/base64.h"

#include <gtest/gtest.h>

namespace kvmbus::vmm {
namespace {

TEST(Base64, ThereAndBack) {
  const std::pair<const char*, const char*> kKnown[] = {{"", ""},
                                                        {"f", "Zg=="},
                                                        {"fo", "Zm8="},
                                                        {"foo", "Zm9v"},
                                                        {"foob", "Zm9vYg=="},
                                                        {"fooba", "Zm9vYmE="},
                                                        {"foobar", "Zm9vYmFy"}};
  for (const auto& [bytes, text] : kKnown) {
    EXPECT_EQ(ToBase64(bytes), text);
    EXPECT_EQ(FromBase64(text), bytes);
  }
  std::string all;
  for (int i = 0; i < 256; ++i) {
    all.push_back(static_cast<char>(i));
    EXPECT_EQ(FromBase64(ToBase64(all)), all);
  }
}

TEST(Base64, TakesWhiteSpaceAndNothingElse) {
  EXPECT_EQ(FromBase64(" Zm9v\r\nYg\t== \n"), "foob");
  for (const char* bad : {"Zg=", "Zg", "Z", "Zg==Zg==", "Z===", "====", "Zm9*", "=Zg="})
    EXPECT_EQ(FromBase64(bad), std::nullopt) << bad;
}

}  // namespace
}  // namespace kvmbus::vmm
