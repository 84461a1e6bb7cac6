// SPDX-License-Identifier: Apache-2.0
#include "vmm/memory/page_set.h"

#include <gtest/gtest.h>

#include <random>

namespace kvmbus::vmm {
namespace {

constexpr uint64_t kPages = 512;

/// Its runs, in order.
std::vector<bool> ByRuns(const PageSet& set, uint64_t first, uint64_t end) {
  std::vector<bool> pages(kPages);
  for (auto run = set.NextRun(first, end); !run.empty(); run = set.NextRun(run.end, end)) {
    EXPECT_LT(run.first, run.end);
    EXPECT_LE(run.end, end);
    for (uint64_t page = run.first; page < run.end; ++page) pages[page] = true;
    EXPECT_TRUE(run.end == end || !set.Contains(run.end)) << "the run is cut short";
  }
  return pages;
}

TEST(PageSetTest, RangesAndRunsAreThoseOfAPlainArray) {
  std::mt19937 random{42};
  for (int round = 0; round < 200; ++round) {
    PageSet set(kPages);
    std::vector<bool> model(kPages);
    for (int step = 0; step < 20; ++step) {
      const uint64_t first = random() % kPages, pages = random() % (kPages + 1 - first) / 4;
      const bool add = random() % 3 != 0;
      add ? set.AddRange(first, pages) : set.RemoveRange(first, pages);
      for (uint64_t page = first; page < first + pages; ++page) model[page] = add;
      const uint64_t from = random() % kPages, to = from + random() % (kPages + 1 - from);
      std::vector<bool> expected(kPages);
      for (uint64_t page = from; page < to; ++page) expected[page] = model[page];
      ASSERT_EQ(ByRuns(set, from, to), expected) << from << " to " << to;
    }
    ASSERT_EQ(set.Count(), static_cast<uint64_t>(std::count(model.begin(), model.end(), true)));
  }
}

TEST(PageSetTest, BlocksAreThoseThatHavePages) {
  std::mt19937 random{7};
  for (const uint64_t block_pages : {64, 128, 256}) {
    for (int round = 0; round < 100; ++round) {
      PageSet set(kPages);
      std::vector<uint64_t> expected;
      for (int pages = round % 5; pages > 0; --pages) set.AddRange(random() % (kPages - 100), 90);
      for (uint64_t block = 0; block < kPages / block_pages; ++block) {
        if (set.AnyIn(block * block_pages, block_pages)) expected.push_back(block);
      }
      ASSERT_EQ(set.Blocks(block_pages), expected);
    }
  }
}

TEST(PageSetTest, OneTakesAllOfAnother) {
  PageSet set(kPages), other(kPages);
  set.AddRange(10, 20);
  other.AddRange(25, 200);
  set.AddAll(other);
  EXPECT_EQ(set.Count(), 215u);
  const auto run = set.NextRun(0, kPages);
  EXPECT_EQ(run.first, 10u);
  EXPECT_EQ(run.end, 225u);
  EXPECT_TRUE(set.NextRun(225, kPages).empty());
}

}  // namespace
}  // namespace kvmbus::vmm
