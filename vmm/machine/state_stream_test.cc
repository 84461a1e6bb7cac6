// SPDX-License-Identifier: Apache-2.0
#include "vmm/machine/state_stream.h"

#include <gtest/gtest.h>

namespace kvmbus::vmm {
namespace {

std::vector<StateRecord> Sample() {
  return {{"rtc", 3, 2, false, "abc"},
          {"hint", 1, 1, true, ""},
          {"scsi/0", 1, 1, false, std::string(5000, 'x')}};
}

TEST(StateStreamTest, RoundTrips) {
  const auto records = ReadStateStream(WriteStateStream(Sample()));
  ASSERT_TRUE(records.ok());
  ASSERT_EQ(records->size(), 3u);
  EXPECT_EQ(records->at(0).name, "rtc");
  EXPECT_EQ(records->at(0).schema_version, 3u);
  EXPECT_EQ(records->at(0).minimum_reader, 2u);
  EXPECT_TRUE(records->at(1).optional);
  EXPECT_EQ(records->at(2).payload, std::string(5000, 'x'));
}

TEST(StateStreamTest, EveryTruncationIsRefused) {
  const std::string bytes = WriteStateStream(Sample());
  for (size_t size = 0; size < bytes.size(); ++size) {
    const auto records = ReadStateStream(std::string_view(bytes).substr(0, size));
    ASSERT_FALSE(records.ok()) << size;
    EXPECT_EQ(records.error().code(), Code::kDataLoss);
  }
}

TEST(StateStreamTest, AFlippedPayloadBitIsRefusedByName) {
  std::string bytes = WriteStateStream(Sample());
  bytes[bytes.find("abc")] ^= 1;
  const auto records = ReadStateStream(bytes);
  ASSERT_FALSE(records.ok());
  EXPECT_NE(records.error().ToString().find("'rtc'"), std::string::npos);
}

TEST(StateStreamTest, HugeLengthsAreRefusedBeforeAllocation) {
  std::string bytes = WriteStateStream({{"rtc", 1, 1, false, ""}});
  for (size_t i = 32; i < 40; ++i) bytes[i] = '\xff';  // payload_bytes of the first record
  EXPECT_FALSE(ReadStateStream(bytes).ok());
}

}  // namespace
}  // namespace kvmbus::vmm
