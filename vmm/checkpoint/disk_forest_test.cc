// SPDX-License-Identifier: Apache-2.0
#include "vmm/checkpoint/disk_forest.h"

#include <gtest/gtest.h>

#include <random>

namespace kvmbus::vmm {
namespace {

using Step = DiskForest::Step;

/// The forest after a step; `unneeded` too.
void Take(const Step& step, DiskForest* forest, std::set<std::string>* unneeded) {
  if (step.kind == Step::Kind::kDelete) {
    ASSERT_TRUE(forest->ChildrenOf(step.file).empty());
    forest->parents.erase(step.file);
    unneeded->erase(step.file);
    return;
  }
  ASSERT_EQ(forest->parents.at(step.file), step.into);
  for (auto& [child, parent] : forest->parents) {
    if (parent == step.file) parent = step.into;
  }
  forest->parents.erase(step.file);
  if (forest->named.erase(step.file) != 0) forest->named.insert(step.into);
  ReplaceMerged(step.file, step.into, unneeded);
}

/// base <- a <- b, and a second child of a.
DiskForest Branched() {
  DiskForest forest;
  forest.parents = {{"base", ""}, {"a", "base"}, {"b", "a"}, {"c", "a"}};
  forest.named = {"b"};
  return forest;
}

TEST(DiskForestTest, ALeafThatNobodyNeedsIsDeleted) {
  const auto step = Branched().NextStep({"c"});
  EXPECT_EQ(step, (Step{Step::Kind::kDelete, "c", ""}));
}

TEST(DiskForestTest, WhatHasOneChildIsMergedWithIt) {
  const auto step = Branched().NextStep({"base"});
  EXPECT_EQ(step, (Step{Step::Kind::kMerge, "a", "base"}));
}

TEST(DiskForestTest, WhatHasTwoChildrenStaysUntilOneIsGone) {
  DiskForest forest = Branched();
  std::set<std::string> unneeded = {"a", "c"};
  EXPECT_FALSE(forest.NextStep({"a"}).has_value());
  Take(*forest.NextStep(unneeded), &forest, &unneeded);
  EXPECT_EQ(forest.NextStep(unneeded), (Step{Step::Kind::kMerge, "b", "a"}));
  Take(*forest.NextStep(unneeded), &forest, &unneeded);
  EXPECT_EQ(forest.named, std::set<std::string>{"a"});
  EXPECT_TRUE(unneeded.empty());
}

TEST(DiskForestTest, WhatAConfigurationNamesStays) {
  DiskForest forest = Branched();
  forest.named = {"a", "b", "c"};
  EXPECT_FALSE(forest.NextStep({"a", "b", "c"}).has_value());
}

TEST(DiskForestTest, WhatSomebodyElseStandsOnStays) {
  DiskForest forest = Branched();
  forest.foreign = {"c"};
  EXPECT_FALSE(forest.NextStep({"a"}).has_value());
  EXPECT_FALSE(forest.NextStep({"c", "a"})->file == "a");
}

TEST(DiskForestTest, FilesThatAreNotItsOwnAreLeftAlone) {
  EXPECT_FALSE(Branched().NextStep({"golden"}).has_value());
}

/// What each named file shows, as the list of the layers' marks.
std::multiset<std::vector<std::string>> Contents(
    const DiskForest& forest, const std::map<std::string, std::vector<std::string>>& marks) {
  std::multiset<std::vector<std::string>> contents;
  for (std::string file : forest.named) {
    std::vector<std::string> layers;
    for (; !file.empty(); file = forest.parents.at(file)) {
      const auto& own = marks.at(file);
      layers.insert(layers.end(), own.begin(), own.end());
    }
    contents.insert(layers);
  }
  return contents;
}

TEST(DiskForestTest, GeneratedForestsKeepWhatIsNamedAndLeaveNothingElse) {
  for (unsigned seed = 0; seed < 2000; ++seed) {
    std::mt19937 random{seed};
    DiskForest forest;
    std::map<std::string, std::vector<std::string>> marks;
    std::vector<std::string> files;
    const int count = 1 + static_cast<int>(random() % 12);
    for (int i = 0; i < count; ++i) {
      const std::string name = "f" + std::to_string(i);
      forest.parents[name] = i == 0 ? "" : files[random() % files.size()];
      marks[name] = {name};
      files.push_back(name);
      if (random() % 3 == 0) forest.named.insert(name);
    }
    forest.named.insert(files.back());
    std::set<std::string> unneeded;
    for (const std::string& file : files) {
      if (forest.named.count(file) == 0) unneeded.insert(file);
    }
    const auto before = Contents(forest, marks);
    int steps = 0;
    while (const auto step = forest.NextStep(unneeded)) {
      ASSERT_LT(++steps, 50);
      if (step->kind == Step::Kind::kMerge) {
        // The child's layers come before those of the file that they go into.
        std::vector<std::string> merged = marks.at(step->file);
        const auto& into = marks.at(step->into);
        merged.insert(merged.end(), into.begin(), into.end());
        marks[step->into] = merged;
        ASSERT_EQ(forest.ChildrenOf(step->into).size(), 1u) << "others would change";
        ASSERT_EQ(forest.named.count(step->into), 0u) << "a checkpoint would change";
      } else {
        ASSERT_EQ(forest.named.count(step->file), 0u);
      }
      Take(*step, &forest, &unneeded);
    }
    EXPECT_EQ(Contents(forest, marks), before) << "seed " << seed;
    for (const auto& [file, parent] : forest.parents)
      EXPECT_TRUE(forest.named.count(file) != 0 || forest.ChildrenOf(file).size() > 1) << file;
  }
}

}  // namespace
}  // namespace kvmbus::vmm
