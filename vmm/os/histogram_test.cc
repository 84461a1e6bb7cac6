// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/histogram.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace kvmbus::vmm {
namespace {

TEST(HistogramTest, EachValueIsBelowItsBucketsEndAndNotBelowTheOneBefore) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 100'000; ++i) {
    const uint64_t ns = random() >> random() % 64;
    const size_t bucket = HistogramBuckets::IndexOf(ns);
    ASSERT_LT(bucket, HistogramBuckets::kCount);
    ASSERT_TRUE(ns < HistogramBuckets::EndOf(bucket) || bucket == HistogramBuckets::kCount - 1)
        << ns;
    if (bucket != 0) {
      ASSERT_GE(ns, HistogramBuckets::EndOf(bucket - 1));
    }
  }
  EXPECT_EQ(HistogramBuckets::EndOf(0), 512u);
  EXPECT_EQ(HistogramBuckets::EndOf(1), 768u);
  EXPECT_EQ(HistogramBuckets::EndOf(2), 1024u);
}

TEST(HistogramTest, QuantilesAreWithinABucketOfTheTrueOnes) {
  std::mt19937_64 random(2);
  std::vector<uint64_t> values;
  Histogram histogram;
  for (int i = 0; i < 10'000; ++i) {
    values.push_back(1000 + random() % 1'000'000);
    histogram.Add(values.back());
  }
  std::sort(values.begin(), values.end());
  const HistogramSnapshot snapshot = histogram.Read();
  EXPECT_EQ(snapshot.count, values.size());
  EXPECT_EQ(snapshot.max_ns, values.back());
  for (const double rank : {0.01, 0.5, 0.9, 0.99, 1.0}) {
    const auto index = static_cast<size_t>(rank * static_cast<double>(values.size())) - 1;
    EXPECT_GE(snapshot.Quantile(rank), values[index]);
    EXPECT_LE(snapshot.Quantile(rank), values[index] * 3 / 2);
  }
}

TEST(HistogramTest, OfNothingThereIsNoQuantileAndSumsAddUp) {
  Histogram one, two;
  EXPECT_EQ(one.Read().Quantile(0.99), 0u);
  one.Add(1'000);
  two.Add(5'000'000);
  two.Add(7'000'000);
  HistogramSnapshot sum = one.Read();
  sum.Add(two.Read());
  EXPECT_EQ(sum.count, 3u);
  EXPECT_EQ(sum.sum_ns, 12'001'000u);
  EXPECT_EQ(sum.max_ns, 7'000'000u);
  EXPECT_EQ(sum.Quantile(1.0), 7'000'000u);
  EXPECT_EQ(sum.Quantile(0.1), 1'024u);
}

}  // namespace
}  // namespace kvmbus::vmm
