// SPDX-License-Identifier: Apache-2.0
/// \file
/// For the tests of the store: a folder, machines to put into it, and a process that ends after any
/// step.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "vmm/config/config_store.h"
#include "vmm/config/limits.h"
#include "vmm/config/vm_files.h"
#include "vmm/hvs/hvs_check.h"
#include "vmm/os/file.h"

namespace kvmbus::vmm {

/// Does so many steps; then the process is gone, and nothing happens any more.
class MortalFiles final : public FileOperations {
 public:
  explicit MortalFiles(int steps) : left_(steps) {}
  bool died() const { return left_ < 0; }

  Result<void> Replace(const std::string& path, std::string_view content) override {
    if (--left_ < 0) return Error(Code::kAborted, "the process has ended");
    return FileOperations::Replace(path, content);
  }
  Result<void> Remove(const std::string& path) override {
    if (--left_ < 0) return Error(Code::kAborted, "the process has ended");
    return FileOperations::Remove(path);
  }

 private:
  int left_;
};

class ConfigStoreTest : public testing::Test {
 protected:
  ConfigStoreTest() {
    char folder[] = "/tmp/store-test-XXXXXX";
    folder_ = ::mkdtemp(folder);
  }
  ~ConfigStoreTest() override { std::filesystem::remove_all(folder_); }

  config::Vm Sample(const std::string& name, const std::string& version = "6.2") const {
    config::Vm vm;
    vm.set_name(name);
    vm.set_version(version);
    vm.set_folder(folder_);
    vm.set_memory_bytes(uint64_t{1} << 30);
    vm.mutable_firmware()->set_kernel("/boot/vmlinuz");
    vm.mutable_serial();
    vm.mutable_integration()->set_heartbeat(true);
    ApplyDefaults(&vm);
    return vm;
  }
  /// `number` makes its id.
  static config::Vm CheckpointOf(config::Vm vm, int number) {
    config::Checkpoint& checkpoint = *vm.mutable_checkpoint();
    checkpoint.set_id(fmt::format("00000000-0000-0000-0000-{:012}", number));
    checkpoint.set_name(fmt::format("checkpoint {}", number));
    checkpoint.set_created_filetime(1000);
    return vm;
  }

  std::unique_ptr<ConfigStore> Store() const { return OpenFileConfigStore(folder_).value(); }
  ConfigStore::Listing List() const { return Store()->List().value(); }
  static std::string Damage(const ConfigStore::Listing& listing) {
    std::string all;
    for (const Error& error : listing.damaged) all += error.ToString() + "\n";
    return all;
  }
  static void Write(const std::string& path, const std::string& content) {
    ASSERT_TRUE(MakeFolders(std::filesystem::path(path).parent_path().string()).ok());
    std::ofstream(path) << content;
  }
  static bool Exists(const std::string& path) { return std::filesystem::exists(path); }
  /// Of every container that is there.
  std::string Findings() const {
    std::string all;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_)) {
      const std::string path = entry.path().string();
      if (!path.ends_with(".vmcx") && !path.ends_with(".vmrs")) continue;
      const Fd fd = OpenFile(path, O_RDONLY).value();
      for (const std::string& finding : CheckHvs(fd.get())) all += path + ": " + finding + "\n";
    }
    return all;
  }

  std::string folder_;
};

}  // namespace kvmbus::vmm
