// SPDX-License-Identifier: Apache-2.0
#include "vmm/event/blocking_budget.h"

#include <gtest/gtest.h>

namespace kvmbus::vmm {
namespace {

constexpr uint64_t kMs = 1'000'000, kFairNs = 30'000;

TEST(BlockingBudgetTest, WhatIsFastMayGoOnForEver) {
  BlockingBudget budget;
  for (uint64_t now = 0; now < 100 * kMs; now += kFairNs) {
    ASSERT_TRUE(budget.Allows(now));
    budget.Took(now + kFairNs, kFairNs, kFairNs);
  }
}

TEST(BlockingBudgetTest, OneLongWaitIsPaidForInTime) {
  BlockingBudget budget;
  uint64_t now = 1000 * kMs;
  budget.Took(now, 202 * kMs, 0);
  EXPECT_FALSE(budget.Allows(now));
  EXPECT_FALSE(budget.Allows(now + 3999 * kMs));
  EXPECT_TRUE(budget.Allows(now + 4000 * kMs)) << "200 ms over the burst";
  now += 4000 * kMs;
  budget.Took(now, 1 * kMs, 0);
  EXPECT_FALSE(budget.Allows(now)) << "the burst is not there again at once";
  EXPECT_TRUE(budget.Allows(now + 20 * kMs));
}

/// Many short waits, each well below the burst, on a loop that does nothing else.
TEST(BlockingBudgetTest, ATwentiethOfTheTimeIsLostAtMost) {
  constexpr uint64_t kTookNs = 110'000, kStepNs = 10'000, kEndNs = 10'000 * kMs;
  BlockingBudget budget;
  uint64_t lost_ns = 0;
  for (uint64_t now = 0; now < kEndNs; now += kStepNs) {
    if (!budget.Allows(now)) continue;
    now += kTookNs;
    budget.Took(now, kTookNs, kFairNs);
    lost_ns += kTookNs - kFairNs;
  }
  EXPECT_LE(lost_ns, kEndNs / BlockingBudget::kShare + 2 * BlockingBudget::kBurstNs);
  EXPECT_GE(lost_ns, kEndNs / BlockingBudget::kShare) << "what is allowed is used";
}

}  // namespace
}  // namespace kvmbus::vmm
