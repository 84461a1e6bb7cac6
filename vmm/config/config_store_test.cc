// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/config_store.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

namespace kvmbus::vmm {
namespace {

class ConfigStoreTest : public testing::Test {
 protected:
  ConfigStoreTest() {
    char folder[] = "/tmp/store-test-XXXXXX";
    folder_ = ::mkdtemp(folder);
    store_ = OpenFileConfigStore(folder_).value();
  }
  ~ConfigStoreTest() override { std::filesystem::remove_all(folder_); }
  static config::Vm Sample(const std::string& id) {
    config::Vm vm;
    vm.set_id(id);
    vm.set_name("n" + id);
    return vm;
  }
  std::string folder_;
  std::unique_ptr<ConfigStore> store_;
};

TEST_F(ConfigStoreTest, WhatIsSavedIsListedAndWhatIsDeletedIsNot) {
  ASSERT_TRUE(store_->Save(Sample("A")).ok());
  ASSERT_TRUE(store_->Save(Sample("B")).ok());
  ASSERT_TRUE(store_->Delete(Sample("A")).ok());
  const auto listing = store_->List();
  ASSERT_TRUE(listing.ok());
  ASSERT_EQ(listing->vms.size(), 1u);
  EXPECT_EQ(listing->vms[0].name(), "nB");
  EXPECT_FALSE(store_->Delete(Sample("A")).ok());
}

TEST_F(ConfigStoreTest, DamagedFilesAreReportedAndKept) {
  ASSERT_TRUE(store_->Save(Sample("A")).ok());
  const std::string path = folder_ + "/A.vm";
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).seekp(20).put('!');
  const auto listing = store_->List();
  ASSERT_TRUE(listing.ok());
  EXPECT_TRUE(listing->vms.empty());
  ASSERT_EQ(listing->damaged.size(), 1u);
  EXPECT_NE(listing->damaged[0].ToString().find("A.vm"), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST_F(ConfigStoreTest, ALeftOverOfAnInterruptedSaveIsNoConfiguration) {
  ASSERT_TRUE(store_->Save(Sample("A")).ok());
  std::ofstream(folder_ + "/A.vm.new.123") << "half";
  EXPECT_EQ(store_->List()->vms.size(), 1u);
  EXPECT_TRUE(store_->List()->damaged.empty());
}

}  // namespace
}  // namespace kvmbus::vmm
