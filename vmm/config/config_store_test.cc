// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/config_store.h"

#include <sys/stat.h>
#include <unistd.h>

#include <ctime>

#include "vmm/config/config_file.h"
#include "vmm/config/config_test_store.h"

namespace kvmbus::vmm {
namespace {

TEST_F(ConfigStoreTest, WhatIsSavedIsListedAndWhatIsDeletedIsNot) {
  for (const char* version : {"5.0", "6.2"}) {
    const config::Vm a = Sample("a", version), b = Sample("b", version);
    const auto store = Store();
    ASSERT_TRUE(store->Save(a).ok());
    ASSERT_TRUE(store->Save(b).ok());
    EXPECT_TRUE(Exists(folder_ + "/Virtual Machines/" + a.id() +
                       (a.version() == "5.0" ? ".xml" : ".vmcx")));
    EXPECT_EQ(Exists(StateFileOf(a)), a.version() == "6.2") << "the mirror";
    EXPECT_EQ(Findings(), "");
    ASSERT_TRUE(store->Delete(a).ok());
    const auto listing = List();
    EXPECT_EQ(Damage(listing), "");
    ASSERT_EQ(listing.vms.size(), 1u);
    EXPECT_EQ(listing.vms[0].SerializeAsString(), b.SerializeAsString());
    EXPECT_EQ(store->Delete(a).error().code(), Code::kNotFound);
    EXPECT_FALSE(Exists(ConfigFileOf(a)) || Exists(StateFileOf(a)));
    ASSERT_TRUE(store->Delete(b).ok());
  }
}

TEST_F(ConfigStoreTest, AChangeIsStoredAndKeepsWhatOthersHavePutThere) {
  config::Vm vm = Sample("a");
  ASSERT_TRUE(Store()->Save(vm).ok());
  Key tree = ReadConfigTree(ConfigFileOf(vm)).value();
  tree.Make("configuration/settings/of_somebody/else").value = "kept";
  ASSERT_TRUE(ReplaceFile(ConfigFileOf(vm), FormatConfigTree(ConfigFileOf(vm), tree).value()).ok());
  vm.set_notes("changed");
  vm.set_vcpu_count(7);
  ASSERT_TRUE(Store()->Save(vm).ok());
  EXPECT_EQ(List().vms.at(0).SerializeAsString(), vm.SerializeAsString());
  EXPECT_EQ(
      ReadConfigTree(ConfigFileOf(vm))->StringOr("configuration/settings/of_somebody/else", ""),
      "kept");
}

TEST_F(ConfigStoreTest, AMachineMayHaveAFolderOfItsOwn) {
  config::Vm vm = Sample("a");
  vm.set_folder(folder_ + "/elsewhere/web");
  ASSERT_TRUE(Store()->Save(vm).ok());
  EXPECT_TRUE(Exists(folder_ + "/elsewhere/web/Virtual Machines/" + vm.id() + ".vmcx"));
  EXPECT_EQ(List().vms.at(0).folder(), folder_ + "/elsewhere/web");
  config::Vm none = Sample("b");
  none.clear_folder();
  ASSERT_TRUE(Store()->Save(none).ok());
  EXPECT_TRUE(Exists(folder_ + "/Virtual Machines/" + none.id() + ".vmcx"));
  EXPECT_EQ(Damage(List()), "");
  EXPECT_EQ(List().vms.size(), 2u);
}

TEST_F(ConfigStoreTest, CheckpointsAreListedWithTheirMachines) {
  for (const char* version : {"5.0", "6.2"}) {
    const config::Vm vm = Sample("a", version);
    const config::Vm first = CheckpointOf(vm, 1), second = CheckpointOf(vm, 2);
    for (const config::Vm& saved : {vm, first, second}) ASSERT_TRUE(Store()->Save(saved).ok());
    EXPECT_FALSE(Exists(StateFileOf(first))) << "only the checkpoint's maker writes it";
    auto listing = List();
    EXPECT_EQ(Damage(listing), "");
    ASSERT_EQ(listing.checkpoints.size(), 2u);
    EXPECT_EQ(listing.checkpoints[0].SerializeAsString(), first.SerializeAsString());
    ASSERT_TRUE(Store()->Delete(first).ok());
    EXPECT_EQ(Store()->Delete(first).error().code(), Code::kNotFound);
    EXPECT_EQ(List().checkpoints.size(), 1u);
    ASSERT_TRUE(Store()->Delete(vm).ok());
    EXPECT_FALSE(Exists(ConfigFileOf(second)));
    ASSERT_TRUE(Store()->Save(second).ok());
    listing = List();
    EXPECT_TRUE(listing.checkpoints.empty());
    EXPECT_NE(Damage(listing).find("of no virtual machine here"), std::string::npos);
    ASSERT_TRUE(Store()->Delete(second).ok());
  }
}

TEST_F(ConfigStoreTest, ASavedStateIsNeverOverwritten) {
  config::Vm vm = Sample("a");
  ASSERT_TRUE(Store()->Save(vm).ok());
  Write(StateFileOf(vm), "memory and devices");
  vm.set_saved(true);
  ASSERT_TRUE(Store()->Save(vm).ok());
  vm.set_saved(false);
  ASSERT_TRUE(Store()->Save(vm).ok());
  EXPECT_EQ(ReadWholeFile(StateFileOf(vm)).value(), "memory and devices");
  config::Vm saved = Sample("b");
  saved.set_saved(true);
  ASSERT_TRUE(Store()->Save(saved).ok());
  EXPECT_FALSE(Exists(StateFileOf(saved)));
}

TEST_F(ConfigStoreTest, DamagedFilesAreReportedAndKept) {
  for (const char* version : {"5.0", "6.2"}) {
    const config::Vm vm = Sample("a", version);
    ASSERT_TRUE(Store()->Save(vm).ok());
    const std::string path = ConfigFileOf(vm);
    std::fstream(path, std::ios::in | std::ios::out | std::ios::binary)
        .seekp(version[0] == '5' ? 300 : 0x3000)
        .write("\0\0\0", 3);
    const std::string damaged = ReadWholeFile(path).value();
    const auto listing = List();
    EXPECT_TRUE(listing.vms.empty());
    EXPECT_NE(Damage(listing).find(path), std::string::npos) << Damage(listing);
    EXPECT_EQ(listing.damaged.size(), 1u);
    EXPECT_EQ(Store()->Save(vm).error().code(), Code::kDataLoss);
    EXPECT_EQ(ReadWholeFile(path).value(), damaged);
    ASSERT_TRUE(Store()->Delete(vm).ok());
  }
}

TEST_F(ConfigStoreTest, AFileOfAnotherMachineOrVersionIsNotTakenForIt) {
  const config::Vm a = Sample("a"), b = Sample("b");
  ASSERT_TRUE(Store()->Save(a).ok());
  ASSERT_TRUE(Store()->Save(b).ok());
  std::filesystem::copy_file(ConfigFileOf(b), ConfigFileOf(a),
                             std::filesystem::copy_options::overwrite_existing);
  auto listing = List();
  EXPECT_EQ(listing.vms.size(), 1u);
  EXPECT_NE(Damage(listing).find("of this id and version belongs in"), std::string::npos);
  Key tree = ReadConfigTree(ConfigFileOf(b)).value();
  tree.Make("configuration/properties/version").value = int64_t{0x900};
  ASSERT_TRUE(ReplaceFile(ConfigFileOf(b), FormatContainer(tree).value()).ok());
  listing = List();
  EXPECT_TRUE(listing.vms.empty());
  EXPECT_NE(Damage(listing).find("version 9.0 is not run here"), std::string::npos);
}

TEST_F(ConfigStoreTest, ALeftOverOfAnInterruptedSaveIsNoConfiguration) {
  const config::Vm vm = Sample("a");
  ASSERT_TRUE(Store()->Save(vm).ok());
  const std::string half = ConfigFileOf(vm) + ".new.123", other = ConfigFileOf(vm) + ".new.old";
  for (const std::string& path : {half, other, folder_ + "/Virtual Machines/readme.xml"})
    Write(path, "text");
  EXPECT_EQ(List().vms.size(), 1u);
  EXPECT_EQ(Damage(List()), "");
  EXPECT_FALSE(Exists(half));
  EXPECT_TRUE(Exists(other)) << "nobody here makes such names";
}

/// A saved state that does not count goes if it is ours; with `ours_alone` Hyper-V's stays.
TEST_F(ConfigStoreTest, ASavedStateThatDoesNotCountGoes) {
  const config::Vm vm = Sample("a");
  ASSERT_TRUE(Store()->Save(vm).ok());
  const std::string mirror = ReadWholeFile(StateFileOf(vm)).value();
  for (const bool ours : {false, true}) {
    Key tree;
    tree.Make(ours ? "savedstate/kvmbus/format" : "savedstate/type").value = int64_t{1};
    const std::string state = FormatContainer(tree).value();
    for (const bool ours_alone : {true, false}) {
      ASSERT_TRUE(ReplaceFile(StateFileOf(vm), state).ok());
      Write(StateFileOf(vm) + ".new", "half");
      ASSERT_TRUE(Store()->TidySavedState(vm, ours_alone).ok());
      EXPECT_FALSE(Exists(StateFileOf(vm) + ".new"));
      EXPECT_EQ(ReadWholeFile(StateFileOf(vm)).value(), !ours && ours_alone ? state : mirror);
    }
  }
}

/// Killed after any step, all of it is there or nothing.
TEST_F(ConfigStoreTest, ADeletionThatIsCutShortIsFinished) {
  for (const char* version : {"5.0", "6.2"}) {
    const config::Vm vm = Sample("a", version);
    const std::vector<config::Vm> all = {vm, CheckpointOf(vm, 1), CheckpointOf(vm, 2)};
    bool died = true, gone = false;
    for (int steps = 0; died; ++steps) {
      for (const config::Vm& one : all) {
        ASSERT_TRUE(Store()->Save(one).ok());
        Write(MemoryFileOf(one), "memory");
      }
      MortalFiles files(steps);
      const bool deleted = OpenFileConfigStore(folder_, files).value()->Delete(vm).ok();
      EXPECT_EQ(deleted, steps > 0) << "the rest is finished by the next one";
      died = files.died();
      gone = steps > 0;
      const auto listing = List();
      EXPECT_EQ(Damage(listing), "");
      EXPECT_EQ(listing.vms.size(), gone ? 0u : 1u);
      EXPECT_EQ(listing.checkpoints.size(), gone ? 0u : 2u);
      for (const config::Vm& one : all) {
        EXPECT_EQ(Exists(ConfigFileOf(one)), !gone);
        EXPECT_EQ(Exists(MemoryFileOf(one)), !gone);
      }
    }
    EXPECT_TRUE(gone);
  }
}

/// Killed after any step, a machine is there or not; a file without one is reported.
TEST_F(ConfigStoreTest, ACreationThatIsCutShortIsReported) {
  ASSERT_TRUE(Store()->Save(Sample("other")).ok());
  bool died = true;
  for (int steps = 0; died; ++steps) {
    const config::Vm vm = Sample("a");
    MortalFiles files(steps);
    const bool saved = OpenFileConfigStore(folder_, files).value()->Save(vm).ok();
    died = files.died();
    EXPECT_NE(saved, died);
    const auto listing = List();
    const bool reported = Damage(listing).find(ConfigFileOf(vm)) != std::string::npos;
    EXPECT_EQ(listing.vms.size(), saved ? 2u : 1u);
    EXPECT_EQ(reported, !saved && steps > 0) << steps;
    if (!saved && steps > 0) {
      EXPECT_EQ(Store()->Save(vm).error().code(), Code::kAlreadyExists) << "it stays";
    }
  }
}

TEST_F(ConfigStoreTest, WithoutAListTheMachinesOfItsFolderAreListedAnew) {
  const config::Vm vm = Sample("a", "5.0");
  ASSERT_TRUE(Store()->Save(vm).ok());
  const std::string list = folder_ + "/data.vmcx";
  Write(list, "not any more");
  const auto refused = OpenFileConfigStore(folder_);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Code::kDataLoss);
  EXPECT_NE(refused.error().ToString().find("move the file away"), std::string::npos);
  EXPECT_EQ(ReadWholeFile(list).value(), "not any more");
  std::filesystem::rename(list, list + ".damaged");
  const auto listing = List();
  EXPECT_EQ(Damage(listing), "");
  ASSERT_EQ(listing.vms.size(), 1u);
  EXPECT_EQ(listing.vms[0].id(), vm.id());
}

/// Killed in between, it lists all of them the next time.
TEST_F(ConfigStoreTest, AListThatIsMadeAnewHasAllOfThemOrIsNotThere) {
  for (const char* name : {"a", "b", "c"}) ASSERT_TRUE(Store()->Save(Sample(name)).ok());
  bool died = true;
  for (int steps = 0; died; ++steps) {
    std::filesystem::remove(folder_ + "/data.vmcx");
    MortalFiles files(steps);
    (void)OpenFileConfigStore(folder_, files);
    died = files.died();
    const auto listing = List();
    EXPECT_EQ(Damage(listing), "");
    EXPECT_EQ(listing.vms.size(), 3u) << steps;
  }
}

/// A folder that was imported may have anything in it.
TEST_F(ConfigStoreTest, WhatIsNoFileIsNotWaitedForOrFollowed) {
  const config::Vm vm = Sample("a");
  ASSERT_TRUE(Store()->Save(vm).ok());
  const config::Vm fifo = CheckpointOf(vm, 1), link = CheckpointOf(vm, 2);
  config::Vm old_fifo = CheckpointOf(vm, 3);
  old_fifo.set_version("5.0");
  ASSERT_TRUE(Store()->Save(link).ok());
  std::filesystem::rename(ConfigFileOf(link), folder_ + "/elsewhere");
  std::filesystem::create_symlink(folder_ + "/elsewhere", ConfigFileOf(link));
  std::filesystem::remove(StateFileOf(vm));
  for (const std::string& path : {ConfigFileOf(fifo), ConfigFileOf(old_fifo), StateFileOf(vm)})
    ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const auto list = [&] {
    ::alarm(20);
    const auto listing = List();
    const bool tidied = Store()->TidySavedState(vm, false).ok();
    const bool good = listing.vms.size() == 1 && listing.checkpoints.empty() &&
                      listing.damaged.size() == 3 && tidied &&
                      std::filesystem::is_regular_file(StateFileOf(vm));
    ::_exit(good ? 0 : 1);
  };
  EXPECT_EXIT(list(), testing::ExitedWithCode(0), "");
}

TEST_F(ConfigStoreTest, AThousandMachinesAreListedFast) {
  const auto store = Store();
  config::Vm vm = Sample("m");
  std::string list;
  for (int i = 0; i < 1000; ++i) {
    vm.set_id(fmt::format("00000000-0000-0000-0000-{:012}", i));
    vm.set_name(fmt::format("m{}", i));
    // One step instead of the four that wait for the disk.
    Key tree;
    WriteVmTree(vm, 0, &tree);
    ASSERT_TRUE(MakeFolders(folder_ + "/Virtual Machines").ok());
    std::ofstream(ConfigFileOf(vm), std::ios::binary) << FormatContainer(tree).value();
  }
  Key registry;
  Key& machines = registry.Make("Configurations/VirtualMachines");
  for (int i = 0; i < 1000; ++i) {
    vm.set_id(fmt::format("00000000-0000-0000-0000-{:012}", i));
    machines.children.push_back({vm.id(), ConfigFileOf(vm), {}});
  }
  ASSERT_TRUE(ReplaceFile(folder_ + "/data.vmcx", FormatContainer(registry).value()).ok());
  const std::clock_t start = std::clock();  // of this process: other ones may be busy
  EXPECT_EQ(List().vms.size(), 1000u);
  EXPECT_LT((std::clock() - start) / CLOCKS_PER_SEC, 3);
}

}  // namespace
}  // namespace kvmbus::vmm
