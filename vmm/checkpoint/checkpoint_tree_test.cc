// SPDX-License-Identifier: Apache-2.0
#include "vmm/checkpoint/checkpoint_tree.h"

#include <gmock/gmock.h>

#include <cstdlib>

#include "vmm/os/clock.h"

namespace kvmbus::vmm {
namespace {

using testing::ElementsAre;
using testing::MatchesRegex;
using testing::Pair;

void Add(CheckpointMap* map, const std::string& id, const std::string& parent, uint64_t age) {
  config::Vm vm;
  vm.mutable_checkpoint()->set_id(id);
  vm.mutable_checkpoint()->set_name("n" + id);
  vm.mutable_checkpoint()->set_parent(parent);
  vm.mutable_checkpoint()->set_created_filetime(age);
  (*map)[id] = vm;
}

CheckpointMap Sample() {
  CheckpointMap map;
  Add(&map, "A", "", 1);
  Add(&map, "D", "A", 2);
  Add(&map, "C", "A", 3);
  Add(&map, "B", "D", 4);
  return map;
}

TEST(CheckpointTreeTest, OrderIsThatOfATreeAndSiblingsAreByAge) {
  EXPECT_THAT(InTreeOrder(Sample()),
              ElementsAre(Pair("A", 0), Pair("D", 1), Pair("B", 2), Pair("C", 1)));
}

TEST(CheckpointTreeTest, AMissingParentIsNone) {
  CheckpointMap map = Sample();
  map.erase("A");
  EXPECT_THAT(InTreeOrder(map), ElementsAre(Pair("D", 0), Pair("B", 1), Pair("C", 0)));
}

TEST(CheckpointTreeTest, SubtreesComeLeavesFirst) {
  EXPECT_THAT(SubtreeOf(Sample(), "D"), ElementsAre("B", "D"));
  EXPECT_EQ(SubtreeOf(Sample(), "A").size(), 4u);
  EXPECT_EQ(SubtreeOf(Sample(), "A").back(), "A");
}

TEST(CheckpointTreeTest, ACycleEnds) {
  CheckpointMap map;
  Add(&map, "A", "B", 1);
  Add(&map, "B", "A", 2);
  EXPECT_EQ(SubtreeOf(map, "A").size(), 2u);
  EXPECT_TRUE(InTreeOrder(map).empty());
}

TEST(CheckpointTreeTest, FoundByIdOrByAnUnambiguousName) {
  CheckpointMap map = Sample();
  EXPECT_EQ(FindCheckpoint(map, "b").value(), "B");
  EXPECT_EQ(FindCheckpoint(map, "nB").value(), "B");
  EXPECT_EQ(FindCheckpoint(map, "x").error().code(), Code::kNotFound);
  map["C"].mutable_checkpoint()->set_name("nB");
  EXPECT_EQ(FindCheckpoint(map, "nB").error().code(), Code::kFailedPrecondition);
}

TEST(CheckpointTreeTest, FiftyAreAllowed) {
  CheckpointMap map;
  for (int i = 0; i < 49; ++i) Add(&map, "C" + std::to_string(i), "", 1);
  EXPECT_TRUE(CheckNewCheckpoint(map, "the 50th").ok());
  Add(&map, "X", "", 1);
  EXPECT_EQ(CheckNewCheckpoint(map, "the 51st").error().code(), Code::kResourceExhausted);
  map.clear();
  EXPECT_EQ(CheckNewCheckpoint(map, "").error().code(), Code::kInvalidArgument);
  EXPECT_EQ(CheckNewCheckpoint(map, std::string(101, 'x')).error().code(), Code::kInvalidArgument);
}

TEST(CheckpointTreeTest, ANameIsTextThatCanBeShown) {
  for (const char* bad : {"cut \xd0", "\xff", "\x1b[2J", "two\nlines", "\u009b2J"})
    EXPECT_EQ(CheckNewCheckpoint({}, bad).error().code(), Code::kInvalidArgument) << bad;
  EXPECT_TRUE(CheckNewCheckpoint({}, "Сервер").ok());
}

TEST(CheckpointTreeTest, TheDefaultNameSaysWhen) {
  ::setenv("TZ", "UTC", 1);
  ::tzset();
  const uint64_t when = FiletimeOfRealtime(1'795'873'510'000'000'000);
  EXPECT_EQ(DefaultCheckpointName("web", when), "web - (11/28/2026 - 01:45:10 PM)");
  EXPECT_EQ(DefaultCheckpointName(std::string(100, 'x'), when).size(), kMaxCheckpointNameBytes);
}

TEST(CheckpointTreeTest, TheDefaultNameOfALongNameEndsItAtACharacter) {
  std::string cyrillic;
  for (int i = 0; i < 36; ++i) cyrillic += "Ж";
  for (const std::string& name : {cyrillic, "a" + cyrillic}) {  // one of them is cut in a letter
    const std::string made = DefaultCheckpointName(name, FiletimeOfRealtime(0));
    EXPECT_TRUE(CheckNewCheckpoint({}, made).ok()) << made;
    EXPECT_GE(made.size(), kMaxCheckpointNameBytes - 1);
  }
}

TEST(CheckpointTreeTest, LeavesAreNamedAfterTheBase) {
  const char* kGuid = "[0-9A-F]+-[0-9A-F]+-[0-9A-F]+-[0-9A-F]+-[0-9A-F]+";
  const std::string leaf = NewLeafPath("/vms/web.vhdx");
  EXPECT_THAT(leaf, MatchesRegex(std::string("/vms/web_") + kGuid + ".avhdx"));
  EXPECT_THAT(NewLeafPath(leaf), MatchesRegex(std::string("/vms/web_") + kGuid + ".avhdx"));
  EXPECT_NE(NewLeafPath(leaf), leaf);
  EXPECT_TRUE(IsLeafPath(leaf));
  EXPECT_FALSE(IsLeafPath("/vms/web.vhdx"));
  EXPECT_FALSE(IsLeafPath("/vms/mine.avhdx"));
  EXPECT_THAT(NewLeafPath("/vms/old.VHD"),
              MatchesRegex(std::string("/vms/old_") + kGuid + ".avhd"));
}

}  // namespace
}  // namespace kvmbus::vmm
