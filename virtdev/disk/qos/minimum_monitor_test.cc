// SPDX-License-Identifier: Apache-2.0
// Whether a minimum was missed, with disks of known speed on a clock of the test's own.
#include "virtdev/disk/qos/minimum_monitor.h"

#include <gtest/gtest.h>

#include "virtdev/disk/qos/qos_test_load.h"

namespace kvmbus::virtdev {
namespace {

using Timing = tests::FakeDisk::Timing;

class MinimumTest : public testing::Test {
 protected:
  /// A disk that does what it has at the end of each period, for so many periods.
  void RunSlow(uint64_t period_ns, unsigned periods) {
    test_.disk.set_timing(Timing::kHeld);
    for (unsigned i = 0; i < periods; ++i) {
      test_.Run(period_ns, period_ns);
      test_.disk.Release();
    }
  }
  MinimumStatus status() { return test_.qos.Statistics().minimum; }
  uint64_t seconds() { return test_.qos.Statistics().insufficient_seconds; }

  QosTestDisk test_;
};

TEST_F(MinimumTest, WithoutOneNothingIsMonitored) {
  test_.Add(8192).Start(4, true);
  RunSlow(100 * kMs, 50);
  EXPECT_EQ(status(), MinimumStatus::kNotMonitored);
  EXPECT_EQ(seconds(), 0u);
}

TEST_F(MinimumTest, ASlowDiskIsToldFromAGuestThatAsksForLittle) {
  test_.qos.SetLimits({500, 0, 0});
  QosTestLoad& load = test_.Add(8192);
  EXPECT_EQ(status(), MinimumStatus::kOk);
  load.Start(4, true);
  RunSlow(10 * kMs, 500);  // 400 a second for 5 seconds
  EXPECT_EQ(status(), MinimumStatus::kInsufficientThroughput);
  EXPECT_EQ(seconds(), 5u);
  RunSlow(7 * kMs, 500);  // 571 a second for 3.5 seconds
  EXPECT_EQ(status(), MinimumStatus::kOk);
  EXPECT_EQ(seconds(), 5u);
  load.Stop();
  RunSlow(10 * kMs, 1);
  for (int i = 0; i < 50; ++i) {  // 10 a second, each of which takes 10 ms
    load.Start(1, false);
    RunSlow(10 * kMs, 1);
    test_.Run(90 * kMs, 90 * kMs);
  }
  EXPECT_EQ(status(), MinimumStatus::kOk);
  EXPECT_EQ(seconds(), 5u);
}

TEST_F(MinimumTest, LargeRequestsCountByTheirSize) {
  test_.qos.SetLimits({500, 0, 0});
  test_.Add(65536).Start(1, true);
  RunSlow(15 * kMs, 400);  // 67 a second, of 8 units each
  EXPECT_EQ(status(), MinimumStatus::kOk);
  EXPECT_EQ(seconds(), 0u);
}

TEST_F(MinimumTest, ADiskThatHangsIsSeenWithoutACompletion) {
  test_.qos.SetLimits({100, 0, 0});
  test_.disk.set_timing(Timing::kHeld);
  test_.Add(8192).Start(1, false);
  test_.Add(8192);
  test_.Run(7'300 * kMs, 100 * kMs);
  EXPECT_EQ(status(), MinimumStatus::kInsufficientThroughput);
  EXPECT_EQ(seconds(), 7u);
  test_.disk.Release();
  test_.Run(2'000 * kMs, 100 * kMs);
  EXPECT_EQ(status(), MinimumStatus::kOk);
  EXPECT_EQ(seconds(), 7u) << "the eighth was busy for less than half";
}

TEST_F(MinimumTest, ALimitIsNotTheDisksFault) {
  test_.qos.SetLimits({500, 500, 64u << 10});  // 8 requests a second
  test_.Add(8192).Start(32, true);
  test_.Run(5'000 * kMs);
  EXPECT_EQ(status(), MinimumStatus::kOk);
  EXPECT_EQ(seconds(), 0u);
  EXPECT_LT(test_.Done(), 60u);
}

TEST_F(MinimumTest, ItMayBeSetAndLiftedWhileRequestsAreUnderWay) {
  test_.disk.set_timing(Timing::kHeld);
  QosTestLoad& load = test_.Add(8192);
  load.Start(2, false);
  test_.qos.SetLimits({100, 0, 0});
  test_.Run(3'000 * kMs, 100 * kMs);
  EXPECT_EQ(seconds(), 3u);
  test_.qos.SetLimits({});
  test_.Run(3'000 * kMs, 100 * kMs);
  EXPECT_EQ(status(), MinimumStatus::kNotMonitored);
  test_.disk.Release();
  test_.qos.SetLimits({100, 0, 0});
  test_.Run(3'000 * kMs, 100 * kMs);
  EXPECT_EQ(status(), MinimumStatus::kOk);
  EXPECT_EQ(seconds(), 3u);
}

}  // namespace
}  // namespace kvmbus::virtdev
