// SPDX-License-Identifier: Apache-2.0
// Containers that somebody made to do harm: refused in one line, by the reader and by the judge.
#include <functional>

#include "vmm/hvs/hvs_test_file.h"

namespace kvmbus::vmm {
namespace {

using hvs::Header;
using hvs::KeyEntry;
using hvs::KeyTableHeader;
using hvs::ObjectEntry;

constexpr uint32_t kLastEntry = hvs::kObjectEntries - 1;

/// configuration/name = "one", object = 3000 bytes.
Key SmallTree() {
  return Node("", {Node("configuration",
                        {Leaf("name", "one"), Leaf("object", KeyBytes{std::string(3000, 'o')})})});
}
constexpr size_t kNodeBytes = sizeof(KeyEntry) + sizeof("configuration") + 12;
constexpr size_t kNameBytes = sizeof(KeyEntry) + sizeof("name") + 4 + 6;
constexpr size_t kPointerBytes = sizeof(KeyEntry) + sizeof("object") + 12;

void SetChain(HvsTestFile& file, uint64_t to) {
  file.Edit<ObjectEntry>(file.ObjectEntryAt(kLastEntry), [&](auto& entry) {
    entry.type = 1;
    entry.offset = to;
    entry.size = 4096;
    entry.flags = 1;
  });
}

struct Case {
  const char* refusal;  ///< what the reader says; "": it takes it
  const char* finding;
  std::function<void(HvsTestFile&)> spoil;
};

const Case kCases[] = {
    {"headers alone", "take 12288", [](auto& file) { ASSERT_EQ(::ftruncate(file.fd(), 100), 0); }},
    {"both headers are damaged", "signature or checksum",
     [](auto& file) {
       file.Put(0, "x");
       file.Put(0x1000, "x");
     }},
    {"", "header 1",  // the other one serves
     [](auto& file) { file.Put(0, "x"); }},
    {"the sequence 7", "sequences are the same",
     [](auto& file) {
       for (const uint64_t at : hvs::kHeaderOffset)
         file.template Edit<Header>(at, [](auto& header) { header.sequence = 7; });
     }},
    {"format version 0x500", "format version",
     [](auto& file) {
       file.template Edit<Header>(0, [](auto& header) { header.format_version = 0x500; });
     }},
    {"no place for a replay log", "no place for it",
     [](auto& file) {
       file.template Edit<Header>(0, [](auto& header) { header.replay_log_offset = ~0ull - 10; });
     }},
    {"no place for a replay log", "no place for it",
     [](auto& file) {
       file.template Edit<Header>(0, [](auto& header) { header.replay_log_size = 1ull << 60; });
     }},
    {"the object tables lead to 0x2000 twice", "leads to it again",
     [](auto& file) { SetChain(file, 0x2000); }},
    {"past the end of the file", "do not lie in the file",
     [](auto& file) { SetChain(file, 1ull << 62); }},
    {"object table at 0x0 is damaged", "overlaps", [](auto& file) { SetChain(file, 0); }},
    {"has 4294967295 entries", "room for 227",
     [](auto& file) { file.Write(0x2004, ~uint32_t{0}); }},
    {"entry 0 of the object table at 0x2000 is damaged", "checksum is wrong",
     [](auto& file) { file.Put(file.ObjectEntryAt(0) + 5, "x"); }},
    {"past the end of the file", "past the end of the file",
     [](auto& file) {
       file.template Edit<ObjectEntry>(file.ObjectEntryAt(0),
                                       [](auto& entry) { entry.offset = 1ull << 40; });
     }},
    {"have more than 67108864 bytes", "past the end of the file",
     [](auto& file) {
       file.template Edit<ObjectEntry>(file.ObjectEntryAt(0),
                                       [](auto& entry) { entry.size = 0xfffff000; });
     }},
    {"", "overlaps",  // two objects in one place
     [](auto& file) {
       const auto object = file.template Read<ObjectEntry>(file.ObjectEntryAt(1));
       file.Write(file.ObjectEntryAt(2), object);
     }},
    {"key tables at 0x4000 and 0x3000 have the same index", "another table has its index",
     [](auto& file) {
       file.Put(0x3000, file.Get(0x4000, 4096));
       file.template Edit<ObjectEntry>(file.ObjectEntryAt(1), [](auto& entry) { entry.type = 2; });
     }},
    {"the key table at 0x4000 is damaged", "checksum of its header",
     [](auto& file) { file.Put(0x4004, "xx"); }},
    {"has 0 bytes", "its size is 0",
     [](auto& file) { file.Write(file.FirstKey() + 2, uint32_t{0}); }},
    {"has 4294967295 bytes", "its size is 4294967295",
     [](auto& file) { file.Write(file.FirstKey() + 2, ~uint32_t{0}); }},
    {"its checksum is wrong", "its checksum is wrong",
     [](auto& file) { file.Put(file.FirstKey() + sizeof(KeyEntry), "C"); }},
    {"its type 99 is unknown", "its type is 99",
     [](auto& file) {
       file.EditKey(file.FirstKey(), kNodeBytes, [](auto& entry) { entry.type = 99; });
     }},
    {"its name has no end", "does not end where",
     [](auto& file) {
       file.EditKey(file.FirstKey(), kNodeBytes, [](auto& entry) { entry.name_size = 255; });
     }},
    {"its name is no UTF-8", "its name is no UTF-8",
     [](auto& file) {
       file.Put(file.FirstKey() + sizeof(KeyEntry), "\xff");
       file.EditKey(file.FirstKey(), kNodeBytes, [](auto&) {});
     }},
    {"or has control characters", "control characters",
     [](auto& file) {
       file.Put(file.FirstKey() + sizeof(KeyEntry), "\x1b");
       file.EditKey(file.FirstKey(), kNodeBytes, [](auto&) {});
     }},
    {"have no way up to the root", "no entry where its parent",  // its own parent
     [](auto& file) {
       file.EditKey(file.FirstKey(), kNodeBytes, [](auto& entry) {
         entry.parent_table = 1;
         entry.parent_offset = sizeof(KeyTableHeader) + 1;
       });
     }},
    {"have no way up to the root", "comes after it",  // a ring
     [](auto& file) {
       file.EditKey(file.FirstKey(), kNodeBytes, [](auto& entry) {
         entry.parent_table = 1;
         entry.parent_offset = sizeof(KeyTableHeader);
       });
     }},
    {"have no way up to the root", "is no node",  // below a value
     [](auto& file) {
       file.EditKey(file.FirstKey() + kNodeBytes + kNameBytes, kPointerBytes,
                    [](auto& entry) { entry.parent_offset = sizeof(KeyTableHeader) + kNodeBytes; });
     }},
    {"key 'name' has no parent", "no entry where its parent",
     [](auto& file) {
       file.EditKey(file.FirstKey() + kNodeBytes, kNameBytes,
                    [](auto& entry) { entry.parent_table = 0; });
     }},
    {"its value is longer than it is", "too short for its value",
     [](auto& file) {
       const uint64_t name = file.FirstKey() + kNodeBytes;
       file.Write(name + sizeof(KeyEntry) + 5, ~uint32_t{0});
       file.EditKey(name, kNameBytes, [](auto&) {});
     }},
    {"its text is no UTF-16", "no UTF-16",
     [](auto& file) {
       const uint64_t name = file.FirstKey() + kNodeBytes;
       file.Write(name + sizeof(KeyEntry) + 9, uint16_t{0xdc00});
       file.EditKey(name, kNameBytes, [](auto&) {});
     }},
    {"past the end of the file", "no object table has its object",
     [](auto& file) {
       const uint64_t object = file.FirstKey() + kNodeBytes + kNameBytes;
       file.Write(object + sizeof(KeyEntry) + 7 + 4, uint64_t{1} << 63);
       file.EditKey(object, kPointerBytes, [](auto&) {});
     }},
    {"", "do not fit into an object",
     [](auto& file) {
       const uint64_t object = file.FirstKey() + kNodeBytes + kNameBytes;
       file.Write(object + sizeof(KeyEntry) + 7, uint32_t{5000});
       file.EditKey(object, kPointerBytes, [](auto&) {});
     }},
    {"a node cannot be an object", "a node cannot be an object",
     [](auto& file) {
       file.EditKey(file.FirstKey(), kNodeBytes, [](auto& entry) { entry.flags = 1; });
     }},
    {"", "insertion sequence",
     [](auto& file) {
       file.EditKey(file.FirstKey() + kNodeBytes, kNameBytes,
                    [](auto& entry) { entry.insertion_sequence = 0; });
     }},
    {"", "next insertion sequence is",
     [](auto& file) {
       file.Write(file.FirstKey() + kNodeBytes - 4, uint32_t{99});
       file.EditKey(file.FirstKey(), kNodeBytes, [](auto&) {});
     }},
};

TEST(HvsHostile, EachIsRefusedAndReported) {
  for (const Case& test : kCases) {
    HvsTestFile file(SmallTree());
    ASSERT_EQ(file.Findings(), "");
    test.spoil(file);
    const std::string refusal = file.Refusal();
    if (*test.refusal == '\0')
      EXPECT_EQ(refusal, "") << test.finding;
    else
      EXPECT_NE(refusal.find(test.refusal), std::string::npos) << test.refusal << ": " << refusal;
    EXPECT_NE(file.Findings().find(test.finding), std::string::npos)
        << test.finding << ": " << file.Findings();
  }
}

/// Of two tables with one index the later counts, over the end of the numbers too.
TEST(HvsHostile, TheLaterKeyTableCounts) {
  for (const auto& [other, wins] : {std::pair{0, false}, {2, true}, {5, true}}) {
    HvsTestFile file(
        Node("", {Leaf("name", "one"), Leaf("pad", KeyBytes{std::string(3000, 'p')})}));
    const auto table = file.Read<ObjectEntry>(file.ObjectEntryAt(0));
    file.Put(0x3000, file.Get(table.offset, 4096));
    file.Edit<KeyTableHeader>(0x3000, [sequence = other](auto& header) {
      header.sequence = static_cast<uint16_t>(sequence);
    });
    const uint64_t name = 0x3000 + sizeof(KeyTableHeader);
    file.Put(name + sizeof(KeyEntry) + 5 + 4, std::string("T\0", 2));
    file.EditKey(name, sizeof(KeyEntry) + 5 + 4 + 6, [](auto&) {});
    file.Edit<ObjectEntry>(file.ObjectEntryAt(1), [](auto& entry) { entry.type = 2; });
    const auto reader = file.Open();
    ASSERT_TRUE(reader.ok()) << reader.error().ToString();
    EXPECT_EQ(reader->root().StringOr("name", ""), wins ? "Tne" : "one") << other;
  }
}

/// A file without content, as large as one likes, has room for any table.
TEST(HvsHostile, ASparseFileCostsNothing) {
  HvsTestFile file(SmallTree());
  ASSERT_EQ(::ftruncate(file.fd(), 80ll << 30), 0);
  file.Write(0x2004, ~uint32_t{0});
  EXPECT_NE(file.Refusal().find("has 4294967295 entries"), std::string::npos) << file.Refusal();
  file.Write(0x2004, hvs::kObjectEntries);
  EXPECT_EQ(file.Refusal(), "") << "large it may be";
  EXPECT_EQ(file.Open({.tree_bytes = 226 * sizeof(ObjectEntry)}).error().code(), Code::kOutOfRange);
}

TEST(HvsHostile, SequencesBeginAgain) {
  EXPECT_TRUE(hvs::IsLater(1, 0));
  EXPECT_TRUE(hvs::IsLater(0, 0xffff));
  EXPECT_FALSE(hvs::IsLater(0xffff, 0));
  EXPECT_FALSE(hvs::IsLater(4, 4));
}

/// Whatever bit of a file is changed, the reader never hands out another tree in silence: either it
/// refuses, or it reads the same, or the bit was an object's own, which have no checksum. What
/// checksums cover is always noticed by the judge.
TEST(HvsHostile, NoBitChangesTheTreeInSilence) {
  Key tree = SmallTree();
  for (int64_t i = 0; i < 200; ++i)
    tree.Make(fmt::format("configuration/key{}", i)).value = i;  // two tables
  HvsTestFile file(tree);
  const uint64_t object = 0x3000, object_end = object + 3000;
  const uint64_t end = file.Read<Header>(0).replay_log_offset + sizeof(hvs::ReplayLogHeader);
  size_t unnoticed = 0;
  for (uint64_t at = 0; at < end; ++at) {
    if (at == object) at = object_end;
    if (at < 0x2000 && at % 4096 > 100) at = hvs::AlignUp(at, 4096);  // nothing stands there
    const std::string before = file.Get(at, 1);
    std::string changed = before;
    changed[0] = static_cast<char>(changed[0] ^ 1 << at % 8);
    file.Put(at, changed);
    const auto reader = file.Open();
    const bool same = reader.ok() && reader->root() == tree;
    const bool noticed = !CheckHvs(file.fd()).empty();
    ASSERT_TRUE(!reader.ok() || same || noticed) << "byte " << at;
    const bool is_covered = at % 4096 < 46 && at < 0x2000;
    ASSERT_TRUE(noticed || !is_covered) << "byte " << at;
    if (!noticed) {
      ++unnoticed;
      ASSERT_TRUE(same) << "byte " << at;
    }
    file.Put(at, before);
  }
  // Behind the headers, the rest of the object's page, free entries and table ends.
  EXPECT_LT(unnoticed, 1096 + 4096u);
  EXPECT_EQ(file.Findings(), "");
}

}  // namespace
}  // namespace kvmbus::vmm
