// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/vm_import.h"

#include "vmm/config/config_file.h"
#include "vmm/config/config_test_store.h"
#include "vmm/config/vm_tree_keys.h"

namespace kvmbus::vmm {
namespace {

/// `folder_`/in is what is imported, /host is none of its business.
class VmImport : public ConfigStoreTest {
 protected:
  VmImport() {
    folder_ = std::filesystem::canonical(folder_).string();
    Write(folder_ + "/host/secret", "secret");
    Write(folder_ + "/in/Virtual Hard Disks/a.vhdx", "disk");
    Write(folder_ + "/in/boot/vmlinuz", "kernel");
    vm_ = Sample("web");
    vm_.set_folder(folder_ + "/in");
    vm_.mutable_firmware()->set_kernel(folder_ + "/in/boot/vmlinuz");
    vm_.add_disks()->set_path("C:\\VMs\\web\\Virtual Hard Disks\\a.vhdx");
  }
  /// As it is found there.
  void Put(const config::Vm& vm) {
    Key tree;
    WriteVmTree(vm, 1, &tree);
    PutTree(ConfigFileOf(vm), tree);
  }
  void PutTree(const std::string& path, const Key& tree) {
    Write(path, FormatConfigTree(path, tree).value());
  }
  ImportOptions Options() const { return {.file = ConfigFileOf(vm_)}; }
  ImportPlan Plan() {
    auto plan = PlanImport(Options());
    EXPECT_TRUE(plan.ok()) << plan.error().ToString();
    return plan.ok() ? std::move(*plan) : ImportPlan();
  }
  static std::string Text(const std::vector<Incompatibility>& list) {
    std::string all;
    for (const auto& [what, fix] : list) {
      EXPECT_FALSE(fix.empty()) << what;
      all += what + "\n";
    }
    return all;
  }

  config::Vm vm_;
};

TEST_F(VmImport, DisksAreFoundByTheirNames) {
  Put(vm_);
  Put(CheckpointOf(vm_, 1));
  const ImportPlan plan = Plan();
  EXPECT_EQ(Text(plan.obstacles), "");
  EXPECT_EQ(plan.machine.vm.disks(0).path(), folder_ + "/in/Virtual Hard Disks/a.vhdx");
  EXPECT_EQ(plan.machine.vm.id(), vm_.id());
  EXPECT_EQ(plan.machine.vm.folder(), folder_ + "/in");
  EXPECT_NE(plan.machine.vm.generation_id(), vm_.generation_id());
  ASSERT_EQ(plan.checkpoints.size(), 1u);
  EXPECT_EQ(plan.checkpoints[0].vm.disks(0).path(), plan.machine.vm.disks(0).path());
}

TEST_F(VmImport, NothingOutsideOfTheFoldersIsUsed) {
  std::filesystem::create_symlink(folder_ + "/host/secret",
                                  folder_ + "/in/Virtual Hard Disks/link.vhdx");
  const std::string secret = folder_ + "/host/secret";
  for (const std::string& path :
       {secret, folder_ + "/in/../host/secret", std::string("..\\host\\secret"),
        std::string("../../host/secret"), std::string("C:\\link.vhdx"), std::string(".."),
        folder_ + "/in/Virtual Hard Disks", std::string("C:\\")}) {
    vm_.mutable_disks(0)->set_path(path);
    Put(vm_);
    EXPECT_NE(Text(Plan().obstacles).find("is in none of the folders"), std::string::npos) << path;
  }
  vm_.clear_disks();
  vm_.mutable_firmware()->set_kernel(secret);
  Put(vm_);
  EXPECT_NE(Text(Plan().obstacles).find("its kernel"), std::string::npos);
  vm_.mutable_firmware()->set_kernel(folder_ + "/in/boot/vmlinuz");
  vm_.mutable_firmware()->set_initrd(secret);
  Put(vm_);
  EXPECT_NE(Text(Plan().obstacles).find("or initrd"), std::string::npos);
}

TEST_F(VmImport, LinksDoNotLeadToAnotherFolder) {
  vm_.set_folder(folder_ + "/host");
  Put(vm_);
  std::filesystem::create_directories(folder_ + "/in/Virtual Machines");
  const std::string link = folder_ + "/in/Virtual Machines/" + vm_.id() + ".vmcx";
  std::filesystem::create_symlink(ConfigFileOf(vm_), link);
  EXPECT_EQ(PlanImport({.file = link}).error().code(), Code::kNotFound);
  std::filesystem::remove_all(folder_ + "/in/Virtual Machines");
  std::filesystem::create_symlink(folder_ + "/host/Virtual Machines",
                                  folder_ + "/in/Virtual Machines");
  EXPECT_EQ(PlanImport({.file = link}).error().code(), Code::kNotFound);
  // Nor do those that wait where a file is written.
  const std::string secret = folder_ + "/host/secret";
  const std::string target = folder_ + "/in/file";
  std::filesystem::create_symlink(secret, fmt::format("{}.new.{}", target, ::getpid()));
  const auto replaced =
      ReplaceFile(target, "new");  // where files have names from the start: refused
  EXPECT_EQ(ReadWholeFile(secret).value(), "secret");
  if (replaced.ok()) {
    EXPECT_FALSE(std::filesystem::is_symlink(target));
    EXPECT_EQ(ReadWholeFile(target).value(), "new");
  }
}

TEST_F(VmImport, WhatWouldBeWrittenOrDeletedIsNotTaken) {
  const std::string secret = folder_ + "/host/secret";
  vm_.mutable_serial()->set_com1("file:" + secret);
  vm_.mutable_disks(0)->set_next(secret);
  vm_.add_unneeded_disks(secret);
  vm_.mutable_merging()->set_file(secret);
  vm_.set_saved(true);
  std::filesystem::create_directories(folder_ + "/in/Virtual Machines");
  std::filesystem::create_symlink(secret, StateFileOf(vm_));
  Put(vm_);
  Put(CheckpointOf(vm_, 1));
  const ImportPlan plan = Plan();
  for (const config::Vm& vm : {plan.machine.vm, plan.checkpoints.at(0).vm}) {
    EXPECT_EQ(vm.SerializeAsString().find("secret"), std::string::npos);
    EXPECT_FALSE(vm.saved());
  }
  for (const char* expected : {"serial port", "a new child", "merges of disks", "saved memory",
                               "checkpoint 'checkpoint 1': serial port"})
    EXPECT_NE(Text(plan.incompatibilities).find(expected), std::string::npos) << expected;
}

TEST_F(VmImport, OtherFoldersCanBeGiven) {
  Write(folder_ + "/disks/b.vhdx", "disk");
  vm_.mutable_disks(0)->set_path("D:\\b.vhdx");
  Put(vm_);
  EXPECT_NE(Text(Plan().obstacles), "");
  ImportOptions options = Options();
  options.folders = {folder_ + "/disks"};
  options.name = "renamed";
  options.firmware.set_kernel("/boot/vmlinuz");
  const auto plan = PlanImport(options);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(Text(plan->obstacles), "");
  EXPECT_EQ(plan->machine.vm.disks(0).path(), folder_ + "/disks/b.vhdx");
  EXPECT_EQ(plan->machine.vm.name(), "renamed");
  EXPECT_EQ(plan->machine.vm.firmware().kernel(), "/boot/vmlinuz")
      << "the caller's own may be anywhere";
  options.folders = {folder_ + "/none"};
  EXPECT_EQ(PlanImport(options).error().code(), Code::kNotFound);
}

TEST_F(VmImport, ASavedStateOfOursIsKept) {
  vm_.set_saved(true);
  Put(vm_);
  Write(StateFileOf(vm_), "memory");
  EXPECT_TRUE(Plan().machine.vm.saved());
}

TEST_F(VmImport, NewerVersionsAndOtherNamesAreInTheWay) {
  Key tree;
  WriteVmTree(vm_, 1, &tree);
  PutTree(folder_ + "/in/Virtual Machines/exported.vmcx", tree);
  ImportOptions options = Options();
  options.file = folder_ + "/in/Virtual Machines/exported.vmcx";
  EXPECT_NE(Text(PlanImport(options)->obstacles).find("should be"), std::string::npos);
  vm_tree::Set(&tree, "configuration/properties/version", int64_t{0x900});
  PutTree(options.file, tree);
  EXPECT_NE(Text(PlanImport(options)->obstacles).find("in version 9.0"), std::string::npos);
  Put(CheckpointOf(vm_, 1));
  options.file = ConfigFileOf(CheckpointOf(vm_, 1));
  EXPECT_EQ(PlanImport(options).error().code(), Code::kInvalidArgument);
  options.file = folder_ + "/none.vmcx";
  EXPECT_EQ(PlanImport(options).error().code(), Code::kNotFound);
}

TEST_F(VmImport, TheRealMachineNeedsItsKernel) {
  const std::string path = folder_ + "/real/Virtual Machines/vm.xml";
  Write(path, ReadWholeFile(KVMBUS_CONFIG_TESTDATA "/hyperv-2012r2-gen1.xml").value());
  const auto plan = PlanImport({.file = path});
  ASSERT_TRUE(plan.ok()) << plan.error().ToString();
  EXPECT_NE(Text(plan->obstacles).find("boots from its disks"), std::string::npos);
  EXPECT_NE(Text(plan->incompatibilities).find("disk.vhd"), std::string::npos);
}

TEST_F(VmImport, AnImportedMachineIsTheStores) {
  Put(vm_);
  const ImportPlan plan = Plan();
  const auto store = Store();
  EXPECT_EQ(store->Save(plan.machine.vm).error().code(), Code::kAlreadyExists);
  ASSERT_TRUE(store->Adopt(plan.machine.vm).ok());
  const auto listing = List();
  EXPECT_EQ(Damage(listing), "");
  ASSERT_EQ(listing.vms.size(), 1u);
  EXPECT_EQ(listing.vms[0].disks(0).path(), plan.machine.vm.disks(0).path());
}

TEST_F(VmImport, NamesOfCheckpointsBecomeSuchThatCanBeShown) {
  Put(vm_);
  const std::pair<std::string, std::string> kNames[] = {
      {"\x1b]0;owned\x07\u009b2J", "?]0;owned??2J"},
      {"", "00000000-0000-0000-0000-000000000002"},
      {std::string(99, 'x') + "Ж", std::string(99, 'x')},
      {"Сервер", "Сервер"}};
  int number = 0;
  for (const auto& [name, unused] : kNames) {
    config::Vm checkpoint = CheckpointOf(vm_, ++number);
    checkpoint.mutable_checkpoint()->set_name(name);
    Put(checkpoint);
  }
  const ImportPlan plan = Plan();
  EXPECT_EQ(Text(plan.obstacles), "");
  ASSERT_EQ(plan.checkpoints.size(), 4u);
  for (size_t i = 0; i < 4; ++i)
    EXPECT_EQ(plan.checkpoints[i].vm.checkpoint().name(), kNames[i].second);
  const std::string lost = Text(plan.incompatibilities);
  EXPECT_NE(lost.find("which becomes '?]0;owned??2J'"), std::string::npos) << lost;
  EXPECT_EQ(lost.find("Сервер"), std::string::npos) << lost;
  EXPECT_EQ(lost.find('\x1b'), std::string::npos);
  EXPECT_EQ(lost.find("\u009b"), std::string::npos);
}

TEST_F(VmImport, FiftyCheckpointsAreImported) {
  Put(vm_);
  for (int number = 1; number <= 50; ++number) Put(CheckpointOf(vm_, number));
  EXPECT_EQ(Text(Plan().obstacles), "");
  Put(CheckpointOf(vm_, 51));
  EXPECT_EQ(Text(Plan().obstacles), "it has 51 checkpoints; 50 are allowed\n");
}

}  // namespace
}  // namespace kvmbus::vmm
