// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/tools/new_file.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "vmm/os/file.h"

namespace kvmbus::virtdev {
namespace {

namespace fs = std::filesystem;
using vmm::Code;

class NewFileTest : public testing::Test {
 protected:
  NewFileTest() {
    char folder[] = "/tmp/new-file-test-XXXXXX";
    folder_ = ::mkdtemp(folder);
    path_ = folder_ + "/disk";
  }
  ~NewFileTest() override { fs::remove_all(folder_); }

  static std::vector<uint8_t> Bytes(const std::string& text) { return {text.begin(), text.end()}; }

  std::string folder_, path_;
};

TEST_F(NewFileTest, IsThereWholeOrNotAtAll) {
  for (const bool publish : {false, true}) {
    auto file = NewFile::Create(path_);
    ASSERT_TRUE(file.ok()) << file.error().ToString();
    ASSERT_TRUE(file->file().Write(Bytes("content"), 0).ok());
    EXPECT_TRUE(fs::is_empty(folder_)) << "whoever is killed now leaves nothing";
    if (publish) {
      ASSERT_TRUE(file->Publish().ok());
    }
  }
  EXPECT_EQ(vmm::ReadWholeFile(path_).value(), "content");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
}

TEST_F(NewFileTest, StaysOpenAndLockedWithItsName) {
  auto file = NewFile::Create(path_).value();
  ASSERT_TRUE(file.Publish().ok());
  const auto taken = file.Take();
  EXPECT_EQ(OpenBlockFile(path_, true).error().code(), Code::kUnavailable);
  ASSERT_TRUE(taken->Write(Bytes("later"), 0).ok());
  EXPECT_EQ(vmm::ReadWholeFile(path_).value(), "later");
}

TEST_F(NewFileTest, NeverReplacesAFile) {
  auto file = NewFile::Create(path_).value();
  std::ofstream(path_) << "somebody's";
  EXPECT_EQ(file.Publish().error().code(), Code::kAlreadyExists);
  EXPECT_EQ(NewFile::Create(path_).error().code(), Code::kAlreadyExists);
  EXPECT_EQ(vmm::ReadWholeFile(path_).value(), "somebody's");
  EXPECT_EQ(NewFile::Create(folder_ + "/none/disk").error().code(), Code::kNotFound);
}

}  // namespace
}  // namespace kvmbus::virtdev
