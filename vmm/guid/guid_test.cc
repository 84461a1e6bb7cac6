// SPDX-License-Identifier: Apache-2.0
#include "vmm/guid/guid.h"

#include <gtest/gtest.h>

namespace kvmbus::vmm {
namespace {

constexpr Guid kScsi = MakeGuid("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");

TEST(GuidTest, WireOrderIsMixedEndian) {
  const std::array<uint8_t, 16> expected = {0xd9, 0x63, 0x61, 0xba, 0xa1, 0x04, 0x29, 0x4d,
                                            0xb6, 0x05, 0x72, 0xe2, 0xff, 0xb1, 0xdc, 0x7f};
  EXPECT_EQ(kScsi.bytes, expected);
}

TEST(GuidTest, TextRoundTripsInEitherCaseAndWithBraces) {
  EXPECT_EQ(kScsi.ToString(), "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
  EXPECT_EQ(Guid::Parse("{BA6163D9-04A1-4D29-B605-72E2FFB1DC7F}"), kScsi);
  EXPECT_EQ(Guid::Parse("ba6163d9-04a1-4d29-b605-72e2ffb1dc7"), std::nullopt);
  EXPECT_EQ(Guid::Parse("ba6163d9x04a1-4d29-b605-72e2ffb1dc7f"), std::nullopt);
}

TEST(GuidTest, RandomOnesDiffer) { EXPECT_NE(Guid::Random(), Guid::Random()); }

}  // namespace
}  // namespace kvmbus::vmm
