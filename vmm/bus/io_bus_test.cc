// SPDX-License-Identifier: Apache-2.0
#include "vmm/bus/io_bus.h"

#include <gtest/gtest.h>

namespace kvmbus::vmm {
namespace {

class Echo : public IoHandler {
 public:
  uint64_t IoRead(uint64_t offset, unsigned size) override { return offset << 8 | size; }
  void IoWrite(uint64_t offset, unsigned, uint64_t value) override { last = offset << 32 | value; }
  uint64_t last = 0;
};

TEST(IoBusTest, DispatchesByAddressWithTheOffset) {
  IoBus bus("port");
  Echo echo;
  std::mutex lock;
  ASSERT_TRUE(bus.Add(0x70, 2, "rtc", echo, lock).ok());
  EXPECT_EQ(bus.Read(0x71, 1), 1u);  // truncated to the size
  bus.Write(0x71, 1, 0xab);
  EXPECT_EQ(echo.last, uint64_t{1} << 32 | 0xab);
}

TEST(IoBusTest, UnclaimedReadsOnes) {
  IoBus bus("port");
  Echo echo;
  std::mutex lock;
  ASSERT_TRUE(bus.Add(0x70, 2, "rtc", echo, lock).ok());
  EXPECT_EQ(bus.Read(0x6f, 1), 0xffu);
  EXPECT_EQ(bus.Read(0x71, 2), 0xffffu);  // reaches past the end
  EXPECT_EQ(bus.Read(0x72, 4), 0xffffffffu);
  EXPECT_EQ(bus.unclaimed().value(), 3u);
}

TEST(IoBusTest, OverlapIsRefusedByName) {
  IoBus bus("port");
  Echo echo;
  std::mutex lock;
  ASSERT_TRUE(bus.Add(0x70, 2, "rtc", echo, lock).ok());
  const auto clash = bus.Add(0x71, 8, "other", echo, lock);
  ASSERT_FALSE(clash.ok());
  EXPECT_EQ(clash.error().code(), Code::kAlreadyExists);
  EXPECT_FALSE(bus.Add(0x68, 9, "other", echo, lock).ok());
  EXPECT_TRUE(bus.Add(0x72, 1, "other", echo, lock).ok());
}

}  // namespace
}  // namespace kvmbus::vmm
