// SPDX-License-Identifier: Apache-2.0
// What is written is read back, and the strict judge has nothing to say about it.
#include <cmath>
#include <limits>
#include <thread>

#include "vmm/hvs/hvs_test_file.h"

namespace kvmbus::vmm {
namespace {

void ExpectSound(const HvsTestFile& file, const Key& tree) {
  const auto reader = file.Open();
  ASSERT_TRUE(reader.ok()) << reader.error().ToString();
  EXPECT_TRUE(reader->root() == tree);
  EXPECT_EQ(file.Findings(), "");
}

TEST(Hvs, EveryTypeComesBack) {
  const Key tree = Node(
      "", {Node("configuration",
                {Leaf("int", std::numeric_limits<int64_t>::min()), Leaf("negative", int64_t{-1}),
                 Leaf("uint", std::numeric_limits<uint64_t>::max()), Leaf("double", -0.5),
                 Leaf("true", true), Leaf("false", false), Leaf("text", "Größe 日本 \U0001F600"),
                 Leaf("empty", std::string()), Leaf("bytes", KeyBytes{std::string("\0\xff\0", 3)}),
                 Leaf("no bytes", KeyBytes{}), Node("empty node", {})}),
           Node("second", {Leaf("x", int64_t{1})})});
  ExpectSound(HvsTestFile(tree), tree);
}

TEST(Hvs, AnEmptyTree) { ExpectSound(HvsTestFile(Key()), Key()); }

TEST(Hvs, SiblingsOfOneNameKeepTheirOrder) {
  Key tree;
  Key& list = tree.Make("list");
  for (int64_t i = 0; i < 500; ++i)
    list.children.push_back(i % 3 == 0 ? Node("item", {Leaf("n", i)}) : Leaf("item", i));
  ExpectSound(HvsTestFile(tree), tree);
}

/// The gap at a table's end takes every size.
TEST(Hvs, TablesAreFilledToTheirEnds) {
  for (size_t extra = 0; extra < 60; ++extra) {
    Key tree;
    Key& node = tree.Make("configuration");
    for (int i = 0; i < 300; ++i)
      node.children.push_back(
          Leaf(fmt::format("key{}", i), std::string(i == 7 ? extra : (i * 13) % 40, 'x')));
    ExpectSound(HvsTestFile(tree), tree);
  }
}

TEST(Hvs, ValuesAroundTheSizeOfObjects) {
  for (const size_t bytes : {2046u, 2047u, 2048u, 2049u, 4096u, 100'000u}) {
    Key tree;
    tree.Make("a/bytes").value = KeyBytes{std::string(bytes, 'b')};
    tree.Make("a/text").value = std::string(bytes / 2, 't');
    ExpectSound(HvsTestFile(tree), tree);
  }
}

TEST(Hvs, NamesAndDepthsUpToTheLimits) {
  Key tree;
  tree.children.push_back(Leaf(std::string(254, 'n'), std::string(1000, 'v')));
  Key* at = &tree.Make("d");
  for (int i = 1; i < 64; ++i) at = &at->Make("d");
  ExpectSound(HvsTestFile(tree), tree);

  const auto refuse = [](const Key& bad, const char* text) {
    HvsTestFile file;
    const auto result = HvsWriter(file.fd()).Finish(bad);
    ASSERT_FALSE(result.ok()) << text;
    EXPECT_EQ(result.error().code(), Code::kInvalidArgument);
    EXPECT_NE(result.error().ToString().find(text), std::string::npos) << result.error().ToString();
  };
  at->Make("d");
  refuse(tree, "more than 64 deep");
  refuse(Node("", {Leaf(std::string(255, 'n'), true)}), "no name of a key");
  refuse(Node("", {Leaf("", true)}), "no name of a key");
  refuse(Node("", {Leaf(std::string("a\0b", 3), true)}), "no name of a key");
  refuse(Node("", {Leaf("a", "\xff")}), "no UTF-8");
  refuse(Node("", {{"a", true, {Leaf("b", true)}}}), "a value and keys below");
  refuse(Node("", {Leaf("a", FileObject{0x3000, 5})}), "not in this container");
}

TEST(Hvs, ObjectsOfAnySizeFromSeveralThreads) {
  HvsTestFile file;
  HvsWriter writer(file.fd());
  constexpr int kThreads = 4, kObjects = 50;
  std::vector<FileObject> objects[kThreads];
  std::vector<std::thread> threads;
  const auto content = [](int thread, int i) {
    return std::string(static_cast<size_t>(i * 997 + thread + 1), static_cast<char>('a' + i % 26));
  };
  for (int thread = 0; thread < kThreads; ++thread)
    threads.emplace_back([&, thread] {
      for (int i = 0; i < kObjects; ++i)
        objects[thread].push_back(writer.Append(content(thread, i)).value());
    });
  for (std::thread& thread : threads) thread.join();
  Key tree;
  for (int thread = 0; thread < kThreads; ++thread)
    for (int i = 0; i < kObjects; ++i)
      tree.Make(fmt::format("t{}/o{}", thread, i)).value = objects[thread][i];
  ASSERT_TRUE(writer.Finish(tree).ok());
  EXPECT_EQ(file.Findings(), "");
  const auto reader = file.Open();
  ASSERT_TRUE(reader.ok());
  for (int thread = 0; thread < kThreads; ++thread)
    for (int i = 0; i < kObjects; ++i)
      EXPECT_EQ(reader->root().Find(fmt::format("t{}/o{}", thread, i))->value,
                Key::Value(KeyBytes{content(thread, i)}));
}

/// As a saved state has them: the object tables become a chain, and holes read as zeroes.
TEST(Hvs, ThousandsOfReservedObjects) {
  HvsTestFile file;
  HvsWriter writer(file.fd());
  constexpr uint32_t kMiB = 1 << 20, kCount = 5000;
  Key tree;
  for (uint32_t i = 0; i < kCount; ++i) {
    const FileObject object = writer.Reserve(kMiB).value();
    if (i % 1000 == 0) file.Put(object.offset, "here");
    tree.children.push_back(Leaf(fmt::format("RamBlock{}", i), object));
  }
  ASSERT_TRUE(writer.Finish(tree).ok());
  EXPECT_EQ(file.Findings(), "");
  const auto reader = file.Open({.tree_bytes = 16 << 20, .inline_bytes = 4096});
  ASSERT_TRUE(reader.ok()) << reader.error().ToString();
  EXPECT_TRUE(reader->root() == tree);
  const auto& object = std::get<FileObject>(reader->root().children[3000].value);
  const std::string bytes = reader->Read(object, kMiB).value();
  EXPECT_EQ(bytes.substr(0, 5), std::string("here\0", 5));
  EXPECT_EQ(reader->Read(object, kMiB - 1).error().code(), Code::kOutOfRange);
  EXPECT_EQ(reader->Read({file.size() + (1 << 20), 1}, kMiB).error().code(), Code::kDataLoss);
}

TEST(Hvs, ObjectsStayObjectsBeyondTheLimits) {
  Key tree;
  tree.Make("small").value = KeyBytes{std::string(3000, 's')};
  tree.Make("large").value = KeyBytes{std::string(9000, 'l')};
  const HvsTestFile file(tree);
  const auto reader = file.Open({.tree_bytes = 1 << 20, .inline_bytes = 4096});
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(reader->root().Find("small")->value, Key::Value(KeyBytes{std::string(3000, 's')}));
  const auto* large = std::get_if<FileObject>(&reader->root().Find("large")->value);
  ASSERT_NE(large, nullptr);
  EXPECT_EQ(reader->Read(*large, 9000).value(), std::string(9000, 'l'));
  EXPECT_EQ(file.Open({.tree_bytes = 1000}).error().code(), Code::kOutOfRange);
}

TEST(Hvs, ObjectsHaveAtLeastAByteAndAtMost64MiB) {
  HvsTestFile file;
  HvsWriter writer(file.fd());
  EXPECT_FALSE(writer.Reserve(0).ok());
  EXPECT_FALSE(writer.Append("").ok());
  EXPECT_TRUE(writer.Reserve(HvsWriter::kMaxObjectBytes).ok());
  EXPECT_FALSE(writer.Reserve(HvsWriter::kMaxObjectBytes + 1).ok());
}

/// Other writers count the NUL, and end files in the middle of a page.
TEST(Hvs, TakesTextWithItsNulAndAFileThatEndsEarly) {
  const Key tree = Node("", {Leaf("a", "hi")});
  HvsTestFile file(tree);
  // name "a\0" and count follow the entry's header
  const uint64_t key = file.FirstKey(), data = key + sizeof(hvs::KeyEntry) + 2;
  const auto entry = file.Read<hvs::KeyEntry>(key);
  auto free = file.Read<hvs::KeyEntry>(key + entry.size);
  ASSERT_EQ(free.type, 1);
  free.size -= 2;
  file.Write(key + entry.size + 2, free);
  file.Write(data, uint32_t{6});
  file.Put(data + 8, std::string(2, '\0'));
  file.EditKey(key, entry.size + 2u, [](auto& header) { header.size += 2; });
  ASSERT_EQ(file.Refusal(), "");
  EXPECT_TRUE(file.Open()->root() == tree);
  EXPECT_NE(file.Findings().find("has a NUL"), std::string::npos);

  const auto header = file.Read<hvs::Header>(0);
  ASSERT_EQ(::ftruncate(file.fd(), static_cast<off_t>(header.replay_log_offset + 60'000)), 0);
  EXPECT_TRUE(file.Open()->root() == tree);
}

/// Each table has room for two of these keys.
TEST(Hvs, WhatIsWrittenCanBeReadOrIsRefused) {
  const auto tree_of = [](uint64_t table_bytes) {
    Key root;
    const KeyBytes value{std::string(hvs::kInlineBytes - 100, 'v')};
    for (uint64_t i = 0; i < table_bytes / hvs::kTableBytes * 2; ++i)
      root.children.push_back(Leaf("key", value));
    return root;
  };
  const HvsTestFile file(tree_of(hvs::kMaxTreeBytes));
  EXPECT_EQ(file.Refusal(), "");
  const HvsTestFile other;
  const auto refused = HvsWriter(other.fd()).Finish(tree_of(hvs::kMaxTreeBytes + hvs::kTableBytes));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Code::kResourceExhausted);
}

}  // namespace
}  // namespace kvmbus::vmm
