// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/file_copy.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "vmm/os/file.h"

namespace kvmbus::vmm {
namespace {

class FileCopyTest : public testing::Test {
 protected:
  FileCopyTest() {
    char folder[] = "/tmp/file-copy-test-XXXXXX";
    folder_ = std::filesystem::canonical(::mkdtemp(folder)).string();
    source_ = OpenFile(folder_ + "/a", O_RDWR | O_CREAT).value();
  }
  ~FileCopyTest() override { std::filesystem::remove_all(folder_); }

  Result<void> Copy(const CopyProgress& progress = nullptr) {
    return CopyToNewFile(source_.get(), folder_ + "/b", progress);
  }
  void Put(const std::string& text, uint64_t at) {
    ASSERT_TRUE(
        PWriteAll(source_.get(), {reinterpret_cast<const uint8_t*>(text.data()), text.size()}, at)
            .ok());
  }
  std::string Of(const char* name) const {
    return ReadWholeFile(folder_ + "/" + name, 256u << 20).value_or("(none)");
  }

  std::string folder_;
  Fd source_;
};

TEST_F(FileCopyTest, DataAndHolesArriveAtTheirPlaces) {
  Put("begin", 0);
  Put(std::string(20u << 20, 'x'), 30u << 20);
  ASSERT_EQ(::ftruncate(source_.get(), 100u << 20), 0);
  uint64_t last = 0, whole = 0;
  ASSERT_TRUE(Copy([&](uint64_t done, uint64_t total) {
                EXPECT_GE(done, last);
                last = done;
                whole = total;
                return true;
              }).ok());
  EXPECT_TRUE(Of("b") == Of("a"));
  struct stat from = {}, to = {};
  ASSERT_EQ(::stat((folder_ + "/a").c_str(), &from), 0);
  ASSERT_EQ(::stat((folder_ + "/b").c_str(), &to), 0);
  EXPECT_EQ(to.st_size, 100 << 20);
  EXPECT_LE(to.st_blocks, from.st_blocks + 64);
  EXPECT_EQ(last, whole);  // 0: a clone has no progress
}

TEST_F(FileCopyTest, AnEmptyFileIsCopied) {
  ASSERT_TRUE(Copy().ok());
  EXPECT_EQ(Of("b"), "");
}

TEST_F(FileCopyTest, NothingIsOverwrittenAndNothingIsLeft) {
  Put("new", 0);
  ASSERT_TRUE(ReplaceFile(folder_ + "/b", "old").ok());
  EXPECT_EQ(Copy().error().code(), Code::kAlreadyExists);
  EXPECT_EQ(Of("b"), "old");
  ASSERT_TRUE(RemoveFile(folder_ + "/b").ok());
  const auto cancelled = Copy([](uint64_t, uint64_t) { return false; });
  if (!cancelled.ok()) {  // a clone is made before anybody can cancel it
    EXPECT_EQ(cancelled.error().code(), Code::kCancelled);
    EXPECT_FALSE(FileExists(folder_ + "/b"));
  }
}

TEST_F(FileCopyTest, ALinkIsNoPlace) {
  EXPECT_TRUE(CheckIsAt(source_.get(), folder_ + "/a").ok());
  ASSERT_EQ(::symlink("a", (folder_ + "/link").c_str()), 0);
  const Fd link = OpenFile(folder_ + "/link", O_RDONLY).value();
  EXPECT_EQ(CheckIsAt(link.get(), folder_ + "/link").error().code(), Code::kFailedPrecondition);
}

}  // namespace
}  // namespace kvmbus::vmm
