// SPDX-License-Identifier: Apache-2.0
// Limits over time, on a clock of the test's own.
#include "virtdev/disk/qos/disk_qos.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "virtdev/disk/qos/qos_test_load.h"
#include "virtdev/disk/qos/rate_bucket.h"

namespace kvmbus::virtdev {
namespace {

using Kind = DiskStatistics::Kind;

uint64_t UnitsOf(uint64_t bytes) { return (bytes + 8191) / 8192; }

struct RateCase {
  QosLimits limits;
  uint64_t request_bytes;
  unsigned queues, depth;
};

class DiskQosRateTest : public testing::TestWithParam<RateCase> {};

TEST_P(DiskQosRateTest, IsWithinOnePercentOfTheLimit) {
  const RateCase& wanted = GetParam();
  constexpr uint64_t kSeconds = 20;
  QosTestDisk test;
  test.qos.SetLimits(wanted.limits);
  for (unsigned i = 0; i < wanted.queues; ++i)
    test.Add(wanted.request_bytes).Start(wanted.depth, true);
  test.Run(1000 * kMs);
  const uint64_t before = test.Done();
  test.Run(kSeconds * 1000 * kMs);
  const double requests = static_cast<double>(test.Done() - before) / kSeconds;
  const auto bytes = static_cast<double>(wanted.request_bytes);
  double limit = INFINITY;
  if (wanted.limits.max_iops != 0)
    limit = static_cast<double>(wanted.limits.max_iops) /
            static_cast<double>(UnitsOf(wanted.request_bytes));
  if (wanted.limits.max_bytes_per_second != 0)
    limit = std::min(limit, static_cast<double>(wanted.limits.max_bytes_per_second) / bytes);
  EXPECT_NEAR(requests, limit, limit / 100);
  EXPECT_EQ(test.qos.Statistics().bytes_read, test.Done() * wanted.request_bytes);
  EXPECT_EQ(test.qos.Statistics().normalized_ios, test.Done() * UnitsOf(wanted.request_bytes));
}

INSTANTIATE_TEST_SUITE_P(
    Limits, DiskQosRateTest,
    testing::Values(RateCase{{0, 50, 0}, 512, 1, 1}, RateCase{{0, 500, 0}, 4096, 1, 32},
                    RateCase{{0, 500, 0}, 8192, 4, 1}, RateCase{{0, 500, 0}, 8704, 1, 4},
                    RateCase{{0, 2000, 0}, 65536, 2, 8}, RateCase{{0, 4000, 0}, 1u << 20, 4, 16},
                    RateCase{{0, 7001, 0}, 4096, 3, 64}, RateCase{{0, 0, 1u << 20}, 4096, 2, 4},
                    RateCase{{0, 0, 32u << 20}, 1u << 20, 4, 8},
                    RateCase{{0, 1000, 1u << 20}, 4096, 2, 4},  // bytes bind
                    RateCase{{0, 100, 1u << 20}, 4096, 2, 4},   // operations bind
                    RateCase{{0, 1000, 1u << 20}, 65536, 2, 4}));

// In no stretch of time more than its share, what an idle disk saves up, and the last request.
TEST(DiskQosTest, ABurstIsBounded) {
  constexpr uint64_t kIops = 1000, kBytes = 16384;
  QosTestDisk test;
  test.qos.SetLimits({0, kIops, 0});
  QosTestLoad& load = test.Add(kBytes);
  test.Run(10'000 * kMs, 1000 * kMs);
  load.Start(256, true);
  test.Settle();
  EXPECT_EQ(load.done(), kIops / 10 / 2 + 1) << "100 ms worth of it, and the request beyond";
  test.Run(1500 * kMs);
  load.Stop();
  test.Run(3000 * kMs);
  load.Start(100, true);
  test.Settle();
  test.Run(700 * kMs);
  const std::vector<uint64_t>& times = load.done_times();
  double lowest = INFINITY, worst = 0;
  for (size_t i = 0; i < times.size(); ++i) {
    const double share = static_cast<double>(times[i]) / 1e9 * kIops;
    lowest = std::min(lowest, static_cast<double>(2 * i) - share);
    worst = std::max(worst, static_cast<double>(2 * (i + 1)) - share - lowest);
  }
  EXPECT_LE(worst, kIops / 10.0 + 2 + 0.01);
}

TEST(DiskQosTest, ANewLimitHasNothingSavedUp) {
  QosTestDisk test;
  QosTestLoad& load = test.Add(8192);
  test.Run(5000 * kMs, 1000 * kMs);
  test.qos.SetLimits({0, 1000, 0});
  test.Settle();
  load.Start(64, true);
  test.Settle();
  EXPECT_EQ(load.done(), 1u);
}

TEST(DiskQosTest, AnOversizedRequestIsNotStarved) {
  QosTestDisk test;
  test.qos.SetLimits({0, 8, 0});
  QosTestLoad& load = test.Add(1u << 20);  // 16 seconds' worth, 160 bursts
  load.Start(1, true);
  test.Run(60'000 * kMs, 10 * kMs);
  EXPECT_EQ(load.done(), 4u) << "at 0, 16, 32 and 48 seconds";
}

TEST(DiskQosTest, QueuesThatWaitTakeTurns) {
  QosTestDisk test;
  test.qos.SetLimits({0, 1000, 0});
  for (const unsigned depth : {1u, 128u, 16u}) test.Add(4096).Start(depth, true);
  test.Run(10'000 * kMs);
  for (const auto& load : test.loads)
    EXPECT_NEAR(static_cast<double>(load->done()), 10'000 / 3.0, 40) << "whatever its depth";
}

TEST(DiskQosTest, AChangeHoldsForThoseThatWait) {
  QosTestDisk test;
  test.qos.SetLimits({0, 8, 0});
  for (int i = 0; i < 2; ++i) test.Add(65536).Start(64, false);
  test.Run(1000 * kMs);
  EXPECT_LE(test.Done(), 2u);
  test.qos.SetLimits({0, 8000, 0});
  const uint64_t before = test.Done();
  test.Run(50 * kMs);
  EXPECT_NEAR(static_cast<double>(test.Done() - before), 50, 3);
  test.qos.SetLimits({0, 8, 0});
  test.Run(1000 * kMs);
  EXPECT_NEAR(static_cast<double>(test.Done() - before), 52, 3);
  test.qos.SetLimits({});
  test.Settle();
  EXPECT_EQ(test.Done(), 128u) << "a limit that is lifted holds nobody";
  EXPECT_EQ(test.qos.limits(), QosLimits());
}

TEST(DiskQosTest, DrainWaitsForNoLimitAndIsNoWayAroundIt) {
  QosTestDisk test;
  test.qos.SetLimits({0, 100, 0});
  QosTestLoad& load = test.Add(8192);
  load.Start(200, false);
  test.Settle();
  EXPECT_EQ(load.done(), 1u);
  load.queue().Drain();
  EXPECT_EQ(load.done(), 200u);
  EXPECT_EQ(load.under_way(), 0u);
  load.Start(1, false);
  test.Run(1990 * kMs);  // each of the 199 has taken 10 ms
  EXPECT_EQ(load.done(), 200u) << "what the drain let go is paid for";
  test.Run(20 * kMs);
  EXPECT_EQ(load.done(), 201u);
}

TEST(DiskQosTest, AQueueGoesWhileOthersWait) {
  QosTestDisk test;
  test.qos.SetLimits({0, 100, 0});
  test.Add(8192).Start(50, false);
  test.Add(8192).Start(50, false);
  test.Settle();
  test.loads.front().reset();  // drains
  test.loads.erase(test.loads.begin());
  EXPECT_LT(test.Done(), 3u);
  test.Run(2000 * kMs);
  EXPECT_EQ(test.Done(), 50u);
  EXPECT_EQ(test.qos.Statistics().latency[Kind::kRead].count, 100u);
}

TEST(DiskQosTest, WhatIsMeasuredIsTheHostsPartAndTheLimitsPart) {
  QosTestDisk test(tests::FakeDisk::Timing::kHeld);
  QosTestLoad& load = test.Add(8192);
  load.Start(1, false);
  test.Run(5 * kMs);
  test.disk.Release();
  DiskStatistics statistics = test.qos.Statistics();
  EXPECT_EQ(statistics.latency[Kind::kRead].max_ns, 5 * kMs);
  EXPECT_EQ(statistics.latency[Kind::kRead].count, 1u);
  EXPECT_EQ(statistics.latency[Kind::kHeld].count, 0u);
  test.disk.set_timing(tests::FakeDisk::Timing::kPosted);
  test.qos.SetLimits({0, 10, 0});
  test.Settle();
  load.Start(3, false);
  test.Run(1000 * kMs);
  statistics = test.qos.Statistics();
  EXPECT_EQ(statistics.latency[Kind::kRead].count, 4u);
  EXPECT_EQ(statistics.latency[Kind::kHeld].count, 2u) << "the first one went at once";
  EXPECT_NEAR(static_cast<double>(statistics.latency[Kind::kHeld].max_ns), 200e6, 1e6);
  EXPECT_EQ(statistics.latency[Kind::kRead].max_ns, 5 * kMs) << "waiting is not the disk's time";
  EXPECT_EQ(statistics.errors, 0u);
}

// A turn of the loop in which something completes, then time passes, then a request is let go that
// completes at once.
TEST(DiskQosTest, NothingCompletesBeforeItBegan) {
  QosTestDisk test(tests::FakeDisk::Timing::kHeld);
  test.qos.SetLimits({0, 10, 0});
  QosTestLoad& load = test.Add(8192);
  load.Start(2, false);
  test.clock.Advance(50 * kMs);
  load.loop().AddTimer(0, [&] {
    test.disk.set_timing(tests::FakeDisk::Timing::kInline);
    test.disk.Release();
    test.clock.Advance(5 * kMs);
  });
  test.clock.Advance(50 * kMs);
  load.loop().RunOnce(0);
  EXPECT_EQ(load.done(), 2u);
  EXPECT_EQ(test.qos.Statistics().latency[Kind::kRead].max_ns, 100 * kMs);
}

TEST(RateBucketTest, HugeRequestsDoNotWrapTheClock) {
  RateBucket bucket({0, 8, 0}, 1'000);
  for (int i = 0; i < 1000; ++i)
    EXPECT_LE(bucket.Reserve(1'000, ~uint64_t{0} >> 8, ~uint64_t{0} >> 8), ~uint64_t{0} >> 4);
}

}  // namespace
}  // namespace kvmbus::virtdev
