// SPDX-License-Identifier: Apache-2.0
// From 5.0 to 6.2, with a process that ends after any step, and a restart that does so too.
#include "vmm/config/config_file.h"
#include "vmm/config/config_test_store.h"
#include "vmm/os/log.h"

namespace kvmbus::vmm {
namespace {

class ConfigUpgrade : public ConfigStoreTest {
 protected:
  ConfigUpgrade() { spdlog::set_level(spdlog::level::off); }

  ~ConfigUpgrade() override { std::filesystem::remove_all(Template()); }

  /// As new. Made once: whatever waits for the disk takes its time.
  void Fill() {
    std::filesystem::remove_all(folder_);
    if (vm_.id().empty()) {
      MakeMachines();
      std::filesystem::rename(folder_, Template());
    }
    std::filesystem::copy(Template(), folder_, std::filesystem::copy_options::recursive);
  }
  std::string Template() const { return folder_ + "-template"; }

  /// A saved machine with two checkpoints, one of them with memory, beside another machine.
  void MakeMachines() {
    vm_ = Sample("web", "5.0");
    vm_.set_saved(true);
    vm_.set_notes("of 5.0");
    other_ = Sample("other", "5.0");
    other_.set_saved(true);
    checkpoint_ = CheckpointOf(vm_, 1);
    config::Vm second = CheckpointOf(vm_, 2);
    second.set_saved(false);
    for (const config::Vm& vm : {vm_, other_, checkpoint_, second, CheckpointOf(other_, 3)}) {
      ASSERT_TRUE(Store()->Save(vm).ok());
      if (!vm.saved()) continue;
      Write(StateFileOf(vm), "devices");
      Write(MemoryFileOf(vm), "memory");
    }
    Key tree = ReadConfigTree(ConfigFileOf(vm_)).value();
    tree.Make("configuration/settings/of_somebody").value = "kept";
    ASSERT_TRUE(
        ReplaceFile(ConfigFileOf(vm_), FormatConfigTree(ConfigFileOf(vm_), tree).value()).ok());
  }

  std::set<std::string> Files() const {
    std::set<std::string> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_))
      files.insert(std::filesystem::relative(entry.path(), folder_).string());
    return files;
  }

  /// All of one version, and nothing of the other is left.
  bool ExpectOldOrNew(const std::set<std::string>& old_files) {
    const auto listing = List();
    EXPECT_EQ(Damage(listing), "");
    EXPECT_EQ(listing.vms.size(), 2u);
    EXPECT_EQ(listing.checkpoints.size(), 3u);
    std::string version;
    for (const config::Vm& vm : listing.vms) {
      if (vm.id() == vm_.id()) version = vm.version();
      EXPECT_EQ(vm.notes(), vm.id() == vm_.id() ? "of 5.0" : "");
    }
    const bool is_new = version == "6.2";
    for (const auto* list : {&listing.vms, &listing.checkpoints}) {
      for (const config::Vm& vm : *list) {
        const bool upgraded = is_new && vm.id() == vm_.id();
        EXPECT_EQ(vm.version(), upgraded ? "6.2" : "5.0");
        EXPECT_EQ(vm.saved(), !upgraded && vm.checkpoint().name() != "checkpoint 2");
        EXPECT_EQ(Exists(MemoryFileOf(vm)), vm.saved() || (upgraded && !vm.has_checkpoint()));
        EXPECT_EQ(ReadConfigTree(ConfigFileOf(vm))
                      ->StringOr("configuration/settings/of_somebody", "none"),
                  vm.id() == vm_.id() && !vm.has_checkpoint() ? "kept" : "none");
      }
    }
    EXPECT_EQ(Findings(), "");
    // data.vmcx, and per machine or checkpoint what is said above; nothing else.
    if (is_new) {
      EXPECT_EQ(Files().size(), old_files.size() - 3 * 2 + 1) << "bin, vsv, folder twice; vmrs";
    } else {
      EXPECT_EQ(Files(), old_files);
    }
    return is_new;
  }

  config::Vm vm_, other_, checkpoint_;
};

TEST_F(ConfigUpgrade, AMachineWithItsCheckpoints) {
  Fill();
  const auto before = Files();
  const auto upgraded = Store()->Upgrade(vm_, true);
  ASSERT_TRUE(upgraded.ok()) << upgraded.error().ToString();
  config::Vm expected = vm_;
  expected.set_version("6.2");
  expected.set_saved(false);
  EXPECT_EQ(upgraded->SerializeAsString(), expected.SerializeAsString());
  EXPECT_TRUE(ExpectOldOrNew(before));
  EXPECT_EQ(Store()->Upgrade(*upgraded, true).error().code(), Code::kFailedPrecondition);
}

TEST_F(ConfigUpgrade, SavedMemoryGoesOnlyIfThatIsAgreedTo) {
  Fill();
  const auto before = Files();
  const auto refused = Store()->Upgrade(vm_, false);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Code::kFailedPrecondition);
  EXPECT_NE(refused.error().ToString().find("of checkpoint 'checkpoint 1', 'web' cannot be kept"),
            std::string::npos)
      << refused.error().ToString();
  EXPECT_EQ(Files(), before);
  config::Vm plain = Sample("plain", "5.0");
  ASSERT_TRUE(Store()->Save(plain).ok());
  EXPECT_TRUE(Store()->Upgrade(plain, false).ok());
}

TEST_F(ConfigUpgrade, WhateverIsInTheWayIsKept) {
  Fill();
  config::Vm newer = checkpoint_;
  newer.set_version("6.2");
  Write(StateFileOf(newer), "mine");
  const auto before = Files();
  EXPECT_EQ(Store()->Upgrade(vm_, true).error().code(), Code::kAlreadyExists);
  EXPECT_EQ(Files(), before);
}

/// A checkpoint that cannot be read is in the way of its own machine alone.
TEST_F(ConfigUpgrade, ADamagedCheckpointIsInTheWayIfItIsTheMachines) {
  Fill();
  const std::string path = ConfigFileOf(checkpoint_);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 20);
  EXPECT_EQ(Store()->Upgrade(vm_, true).error().code(), Code::kDataLoss);
  // Nothing is left in it, but the machine grew from it.
  Write(path, "");
  config::Vm grown = vm_;
  grown.set_parent_checkpoint(checkpoint_.checkpoint().id());
  ASSERT_TRUE(Store()->Save(grown).ok());
  EXPECT_EQ(Store()->Upgrade(grown, true).error().code(), Code::kDataLoss);

  Fill();
  const std::string others = ConfigFileOf(CheckpointOf(other_, 3));
  std::filesystem::resize_file(others, std::filesystem::file_size(others) - 20);
  const auto upgraded = Store()->Upgrade(vm_, true);
  EXPECT_TRUE(upgraded.ok()) << upgraded.error().ToString();
  EXPECT_TRUE(Exists(others));
}

TEST_F(ConfigUpgrade, OldOrNewAfterAnyStep) {
  bool died = true;
  int news = 0, olds = 0;
  for (int steps = 0; died; ++steps) {
    Fill();
    const auto before = Files();
    MortalFiles files(steps);
    const bool done = OpenFileConfigStore(folder_, files).value()->Upgrade(vm_, true).ok();
    died = files.died();
    const bool is_new = ExpectOldOrNew(before);
    EXPECT_TRUE(!done || is_new) << steps;
    ++(is_new ? news : olds);
    EXPECT_EQ(ExpectOldOrNew(before), is_new) << "and it stays so";
    if (HasFailure()) FAIL() << "after " << steps << " steps";
  }
  EXPECT_GT(news, 5);
  EXPECT_GT(olds, 4);
}

TEST_F(ConfigUpgrade, OldOrNewAfterARestartThatEndsToo) {
  bool died = true;
  for (int steps = 0; died; steps += 2) {
    bool settling_died = true;
    for (int more = 0; settling_died; ++more) {
      Fill();
      const auto before = Files();
      MortalFiles files(steps);
      (void)OpenFileConfigStore(folder_, files).value()->Upgrade(vm_, true);
      died = files.died();
      MortalFiles settling(more);
      const auto store = OpenFileConfigStore(folder_, settling);
      ASSERT_TRUE(store.ok());
      EXPECT_EQ((*store)->List()->vms.size(), 2u) << "also while it is not settled";
      settling_died = settling.died();
      ExpectOldOrNew(before);
      if (HasFailure()) FAIL() << "after " << steps << " and " << more << " steps";
    }
  }
}

/// What cannot be written is undone at once.
TEST_F(ConfigUpgrade, AFailureOfTheDiskLeavesTheOld) {
  class FullDisk final : public FileOperations {
   public:
    explicit FullDisk(const char* what) : what_(what) {}
    Result<void> Replace(const std::string& path, std::string_view content) override {
      if (path.find(what_) != std::string::npos)
        return Error(Code::kResourceExhausted, "no space left");
      return FileOperations::Replace(path, content);
    }

   private:
    const std::string what_;
  };
  for (const std::string& what : {std::string(), std::string("000000000002.vmcx")}) {
    Fill();
    const auto before = Files();
    FullDisk files(what.empty() ? (vm_.id() + ".vmcx").c_str() : what.c_str());
    EXPECT_EQ(OpenFileConfigStore(folder_, files).value()->Upgrade(vm_, true).error().code(),
              Code::kResourceExhausted);
    EXPECT_EQ(Files(), before);
    EXPECT_FALSE(ExpectOldOrNew(before));
  }
}

}  // namespace
}  // namespace kvmbus::vmm
