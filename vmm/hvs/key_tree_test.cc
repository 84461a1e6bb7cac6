// SPDX-License-Identifier: Apache-2.0
#include "vmm/hvs/key_tree.h"

#include <gtest/gtest.h>

namespace kvmbus::vmm {
namespace {

TEST(KeyTree, MakesAndFindsByPath) {
  Key root;
  root.Make("settings/memory/size").value = int64_t{1024};
  root.Make("settings/memory/dynamic").value = true;
  root.Make("settings/name").value = "one";
  ASSERT_EQ(root.children.size(), 1u);
  EXPECT_EQ(root.children[0].children.size(), 2u);
  EXPECT_EQ(root.IntOr("settings/memory/size", 0), 1024);
  EXPECT_TRUE(root.BoolOr("settings/memory/dynamic", false));
  EXPECT_EQ(root.StringOr("settings/name", ""), "one");
  EXPECT_EQ(root.Find("settings/memori"), nullptr);
  EXPECT_EQ(root.Find(""), &root);
  EXPECT_TRUE(root.Find("settings")->is_node());
}

TEST(KeyTree, AnotherTypeIsNotThere) {
  Key root;
  root.Make("a").value = "text";
  EXPECT_EQ(root.IntOr("a", 7), 7);
  EXPECT_EQ(root.IntOr("b", 7), 7);
  EXPECT_FALSE(root.BoolOr("a", false));
  root.Make("a").value = uint64_t{1};
  EXPECT_EQ(root.IntOr("a", 7), 7) << "UInt is not Int";
  EXPECT_EQ(root.StringOr("a", "none"), "none");
}

TEST(KeyTree, TheFirstOfSeveralIsMeantAndOthersStay) {
  Key root;
  for (int64_t i = 0; i < 3; ++i) root.children.push_back({"item", i, {}});
  EXPECT_EQ(root.IntOr("item", -1), 0);
  EXPECT_TRUE(root.Remove("item"));
  EXPECT_EQ(root.IntOr("item", -1), 1);
  EXPECT_EQ(root.children.size(), 2u);
  EXPECT_FALSE(root.Remove("item/below"));
  EXPECT_FALSE(root.Remove("other"));
  EXPECT_FALSE(root.Remove("other/below"));
}

TEST(KeyTree, AValueOnTheWayBecomesANode) {
  Key root;
  root.Make("a").value = "text";
  root.Make("a/b").value = true;
  EXPECT_TRUE(root.Find("a")->is_node());
  EXPECT_TRUE(root.BoolOr("a/b", false));
}

}  // namespace
}  // namespace kvmbus::vmm
