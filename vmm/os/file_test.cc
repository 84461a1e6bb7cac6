// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

namespace kvmbus::vmm {
namespace {

class FileTest : public testing::Test {
 protected:
  FileTest() {
    char folder[] = "/tmp/file-test-XXXXXX";
    folder_ = ::mkdtemp(folder);
  }
  ~FileTest() override { std::filesystem::remove_all(folder_); }

  std::string At(const std::string& name) const { return folder_ + "/" + name; }
  void Make(const std::vector<std::string>& names) const {
    for (const std::string& name : names) ASSERT_TRUE(OpenFile(At(name), O_CREAT | O_WRONLY).ok());
  }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_))
      names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }

  std::string folder_;
};

using NameList = std::vector<std::string>;

TEST_F(FileTest, WhatWasToBecomeAFileGoesAndNothingElse) {
  const NameList others = {".new.7", "a",          "a.new",   "a.new.", "a.new.7x",
                           "a.new7", "aa.new.123", "b.new.7", "new.7"};
  Make(others);
  Make({"a.new.123", "a.new.9"});
  std::filesystem::create_symlink("nowhere", At("a.new.55"));
  EXPECT_EQ(UnfinishedOf(At("a")).size(), 3u);
  RemoveUnfinishedOf(At("a"));
  EXPECT_EQ(Names(), others);

  RemoveUnfinished(folder_);
  EXPECT_EQ(Names(), (NameList{".new.7", "a", "a.new", "a.new.", "a.new.7x", "a.new7", "new.7"}));
}

TEST_F(FileTest, ATemporaryNameIsOneOfAnUnfinishedFile) {
  Make({std::filesystem::path(TemporaryName(At("a"))).filename().string()});
  EXPECT_EQ(UnfinishedOf(At("a")), NameList{TemporaryName(At("a"))});
  EXPECT_EQ(UnfinishedOf(At("b")), NameList());
}

TEST_F(FileTest, AFileIsReplacedAndRemoved) {
  ASSERT_TRUE(ReplaceFile(At("a"), "one").ok());
  ASSERT_TRUE(ReplaceFile(At("a"), "two").ok());
  EXPECT_EQ(ReadWholeFile(At("a")).value(), "two");
  EXPECT_EQ(ReadWholeFile(At("a"), 2).error().code(), Code::kOutOfRange);
  EXPECT_EQ(Names(), NameList{"a"});
  ASSERT_TRUE(RemoveFile(At("a")).ok());
  ASSERT_TRUE(RemoveFile(At("a")).ok());  // it need not be there
  EXPECT_EQ(Names(), NameList());
}

TEST_F(FileTest, AFileThatCannotBeReplacedStaysAsItWas) {
  ASSERT_TRUE(MakeFolders(At("a/b")).ok());
  EXPECT_FALSE(ReplaceFile(At("a"), "text").ok());
  EXPECT_EQ(Names(), NameList{"a"});
}

TEST_F(FileTest, ALinkNeedsItsSourceWhateverHasTheOtherName) {
  ASSERT_TRUE(ReplaceFile(At("a"), "one").ok());
  ASSERT_TRUE(LinkFile(At("a"), At("b")).ok());
  ASSERT_TRUE(LinkFile(At("a"), At("b")).ok()) << "as after a kill";
  ASSERT_TRUE(RemoveFile(At("a")).ok());
  EXPECT_EQ(LinkFile(At("a"), At("b")).error().code(), Code::kNotFound);
  EXPECT_EQ(ReadWholeFile(At("b")).value(), "one");
  EXPECT_EQ(Names(), NameList{"b"});
}

TEST_F(FileTest, OnlyARegularFileIsOpenedAndNothingIsWaitedFor) {
  ASSERT_EQ(::mkfifo(At("fifo").c_str(), 0600), 0);
  Make({"file"});
  std::filesystem::create_symlink("file", At("link"));
  EXPECT_TRUE(OpenRegularFile(At("file")).ok());
  for (const std::string& other : {At("fifo"), At("link"), folder_, std::string("/dev/zero")})
    EXPECT_FALSE(OpenRegularFile(other).ok()) << other;
  EXPECT_EQ(OpenRegularFile(At("none")).error().code(), Code::kNotFound);
}

}  // namespace
}  // namespace kvmbus::vmm
