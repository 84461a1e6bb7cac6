// SPDX-License-Identifier: Apache-2.0
// What waits in a replay log is read as if it stood in its place; the file is left alone.
#include "vmm/hvs/hvs_test_file.h"

namespace kvmbus::vmm {
namespace {

using hvs::ReplayEntryChecksumFirst;
using hvs::ReplayEntryChecksumLast;
using hvs::ReplayLogHeader;

/// Two containers of one shape: the log turns the first one into the second.
Key Tree(const char* name) {
  return Node("", {Leaf("name", name), Leaf("object", KeyBytes{std::string(3000, name[0])})});
}

class HvsReplay : public testing::Test {
 protected:
  HvsReplay() : file_(Tree("one")), other_(Tree("two")) {
    log_ = file_.Read<hvs::Header>(0).replay_log_offset;
  }

  template <typename T>
  void Log(uint64_t destination, const std::string& data) {
    T entry = {};
    entry.destination = destination;
    entry.size = static_cast<uint32_t>(data.size());
    entry.offset = data_;
    entry.data_checksum = hvs::Crc32(data);
    entry.checksum = hvs::ChecksumOf(entry);
    file_.Put(log_ + data_, data);
    file_.Write(log_ + sizeof(ReplayLogHeader) + entries_ * sizeof(T), entry);
    data_ += hvs::AlignUp(data.size(), 512);
    ++entries_;
    file_.Edit<ReplayLogHeader>(log_, [this](auto& log) { log.current_entries = entries_; });
  }
  template <typename T>
  void LogAll() {
    const uint64_t table = file_.FirstKey() - sizeof(hvs::KeyTableHeader);
    Log<T>(table, other_.Get(table, 4096));
    Log<T>(0x3000, other_.Get(0x3000, 1000));
    Log<T>(0x3000 + 1000, other_.Get(0x3000 + 1000, 2000));
  }
  void ExpectReplayed() {
    const std::string before = file_.Get(0, file_.size());
    const auto reader = file_.Open();
    ASSERT_TRUE(reader.ok()) << reader.error().ToString();
    EXPECT_TRUE(reader->root() == Tree("two"));
    EXPECT_EQ(file_.Get(0, file_.size()), before);
    EXPECT_NE(file_.Findings().find("3 entries wait"), std::string::npos);
  }

  HvsTestFile file_, other_;
  uint64_t log_;
  uint64_t data_ = 4096;
  uint32_t entries_ = 0;
};

TEST_F(HvsReplay, ChecksumFirst) {
  LogAll<ReplayEntryChecksumFirst>();
  ExpectReplayed();
}

TEST_F(HvsReplay, ChecksumLast) {
  LogAll<ReplayEntryChecksumLast>();
  ExpectReplayed();
}

TEST_F(HvsReplay, LaterEntriesLieOverEarlierOnes) {
  LogAll<ReplayEntryChecksumFirst>();
  Log<ReplayEntryChecksumFirst>(0x3000 + 998, "LATER");
  const auto reader = file_.Open({.inline_bytes = 16});
  ASSERT_TRUE(reader.ok());
  const auto object = std::get<FileObject>(reader->root().Find("object")->value);
  std::string expected(3000, 't');
  expected.replace(998, 5, "LATER");
  EXPECT_EQ(reader->Read(object, 3000).value(), expected);
}

TEST_F(HvsReplay, RetiredEntriesAreNotApplied) {
  LogAll<ReplayEntryChecksumFirst>();
  file_.Edit<ReplayLogHeader>(log_, [](auto& log) { log.current_entries = 0; });
  EXPECT_TRUE(file_.Open()->root() == Tree("one"));
}

TEST_F(HvsReplay, DamageOfTheLogIsRefused) {
  LogAll<ReplayEntryChecksumFirst>();
  const uint64_t entry = log_ + sizeof(ReplayLogHeader);
  const auto good = file_.Read<ReplayEntryChecksumFirst>(entry);
  const auto try_entry = [&](auto change) {
    file_.Edit<ReplayEntryChecksumFirst>(entry, change);
    const std::string refusal = file_.Refusal();
    file_.Write(entry, good);
    return refusal;
  };
  EXPECT_EQ(try_entry([](auto&) {}), "");
  for (const auto& refusal :
       {try_entry([](auto& e) { e.destination = ~0ull; }), try_entry([](auto& e) { e.size = ~0u; }),
        try_entry([](auto& e) { e.offset = ~0ull; })})
    EXPECT_NE(refusal.find("entry 0 of the replay log lies outside"), std::string::npos) << refusal;
  EXPECT_NE(try_entry([](auto& e) { e.data_checksum ^= 1; }).find("the data of entry 0"),
            std::string::npos);
  file_.Put(entry, "x");
  EXPECT_NE(file_.Refusal().find("entry 0 of the replay log is damaged"), std::string::npos);
  file_.Edit<ReplayLogHeader>(log_, [](auto& log) { log.current_entries = 100'000; });
  EXPECT_NE(file_.Refusal().find("has 100000 entries"), std::string::npos);
  file_.Put(log_, "x");
  EXPECT_NE(file_.Refusal().find("the replay log at"), std::string::npos);
}

/// The same data many times over would cost memory that the file does not justify.
TEST_F(HvsReplay, EntriesCannotShareTheirData) {
  const std::string data(50'000, 'd');
  Log<ReplayEntryChecksumFirst>(0x3000, data);
  data_ = 4096;
  Log<ReplayEntryChecksumFirst>(0x3000, data);
  EXPECT_NE(file_.Refusal().find("entry 1 of the replay log lies outside"), std::string::npos)
      << file_.Refusal();
}

}  // namespace
}  // namespace kvmbus::vmm
