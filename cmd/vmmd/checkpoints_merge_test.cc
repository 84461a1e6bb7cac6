// SPDX-License-Identifier: Apache-2.0
// What becomes of image files that no checkpoint needs any more, where something else has to do
// with them: a checkpoint made meanwhile, another machine, a symbolic link, a disk that is gone.
#include <gmock/gmock.h>

#include "cmd/vmmd/checkpoints_test_host.h"
#include "cmd/vmmd/image_files.h"
#include "vmm/manager/disk_operations.h"
#include "vmm/manager/image_users.h"

namespace kvmbus::cmd {
namespace {

using testing::HasSubstr;
using testing::Not;

class CheckpointsMergeTest : public TestHostTest {
 protected:
  CheckpointsMergeTest() : TestHostTest("checkpoints-merge-test") {}

  /// Of the machine's disk, which is begun, and was noted by a vmmd that has ended.
  void NoteMerge(const std::string& into) {
    config::Vm vm = host_->Vm();
    vm.mutable_merging()->set_file(TestHost::DiskOf(vm));
    vm.mutable_merging()->set_into(into);
    vm.add_unneeded_disks(into);
    ASSERT_TRUE(host_->inventory->Store(vm).ok());
  }
};

TEST_F(CheckpointsMergeTest, ACheckpointMadeDuringAMergeStandsOnWhatIsLeft) {
  host_->MakeVm("");
  host_->Write(0, 'a');
  const std::string base = TestHost::DiskOf(host_->Vm());
  ASSERT_TRUE(host_->Create("one").ok());
  host_->Write(1, 'b');
  // What "delete" and the begin of its merge leave.
  NoteMerge(base);
  ASSERT_TRUE(host_->inventory
                  ->Make([&] {
                    config::FileChange change;
                    *change.add_remove() = Named("one");
                    return change;
                  }())
                  .ok());
  ASSERT_TRUE(host_->Create("two").ok());
  EXPECT_FALSE(Named("two").has_merging());
  ASSERT_TRUE(host_->Settle());
  host_->Write(2, 'c');
  EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "abc.");
  EXPECT_EQ(TestHost::ContentOf(Named("two")), "ab..");
  EXPECT_EQ(host_->Images().size(), 2u);
  ASSERT_TRUE(host_->Apply("two").ok());
  EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "ab..");
}

TEST_F(CheckpointsMergeTest, ADeleteWaitsForTheEndOfAMergeBeforeItIsPlanned) {
  host_->MakeVm("");
  const std::string base = TestHost::DiskOf(host_->Vm());
  ASSERT_TRUE(host_->Create("one").ok());
  host_->Write(0, 'a');
  NoteMerge(base);
  ASSERT_TRUE(virtdev::MergeDisk(TestHost::DiskOf(host_->Vm()), nullptr).ok());
  Restart();  // its first turn is the end of the merge
  ASSERT_TRUE(host_->Delete("one", false).ok());
  EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "a...");
  EXPECT_EQ(TestHost::DiskOf(host_->Vm()), base);
}

TEST_F(CheckpointsMergeTest, AFolderThatIsReachedByASymbolicLinkIsTheFolder) {
  const std::string link = folder_ + "-link";
  std::filesystem::create_directory_symlink(folder_, link);
  host_.reset();
  host_ = std::make_unique<TestHost>(link);
  host_->MakeVm("");
  host_->Write(0, 'a');
  ASSERT_TRUE(host_->Create("one").ok());
  host_->Write(1, 'b');
  ASSERT_TRUE(host_->Create("two").ok());
  host_->Write(2, 'c');
  ASSERT_TRUE(host_->Delete("two", false).ok());
  EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "abc.");
  EXPECT_EQ(host_->Images().size(), 2u) << "what two stood on is merged";
  ASSERT_TRUE(host_->Delete("one", false).ok());
  EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "abc.");
  EXPECT_EQ(host_->Images().size(), 1u);
  std::filesystem::remove(link);
}

/// The worker had linked the layer above anew, and was killed before it removed the file: to merge
/// it again would give its parent another identity, which nobody is linked to.
TEST_F(CheckpointsMergeTest, AMergeThatWasAsGoodAsOverIsNotMadeAgain) {
  host_->MakeVm("");
  host_->Write(0, 'a');
  const std::string base = TestHost::DiskOf(host_->Vm());
  ASSERT_TRUE(host_->Create("one").ok());
  host_->Write(1, 'b');
  const std::string middle = TestHost::DiskOf(host_->Vm());
  ASSERT_TRUE(host_->Create("two").ok());
  host_->Write(2, 'c');
  const std::string top = TestHost::DiskOf(host_->Vm());
  config::Vm vm = host_->Vm();
  vm.mutable_merging()->set_file(middle);
  vm.mutable_merging()->set_into(base);
  vm.mutable_merging()->add_children(top);
  vm.add_unneeded_disks(base);
  vm.add_unneeded_disks(middle);
  vm.clear_parent_checkpoint();
  config::FileChange change;
  *change.add_store() = vm;
  *change.add_remove() = Named("one");
  *change.add_remove() = Named("two");
  ASSERT_TRUE(host_->inventory->Make(change).ok());
  std::filesystem::create_hard_link(middle, middle + ".kept");
  ASSERT_TRUE(virtdev::MergeDisk(middle, nullptr).ok());
  ASSERT_TRUE(virtdev::ReparentDisk(top, base, true).ok());
  std::filesystem::rename(middle + ".kept", middle);
  Restart();
  ASSERT_TRUE(host_->Settle());
  EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "abc.");
  EXPECT_EQ(TestHost::DiskOf(host_->Vm()), base);
  EXPECT_EQ(host_->Images().size(), 1u);
}

/// A live merge leaves a link of the top's name, and the power goes before the configuration has
/// the file's.
TEST_F(CheckpointsMergeTest, ADiskThatIsALinkIsTheFile) {
  host_->MakeVm("");
  host_->Write(0, 'a');
  const std::string base = TestHost::DiskOf(host_->Vm());
  ASSERT_TRUE(host_->Create("one").ok());
  host_->Write(1, 'b');
  const std::string leaf = TestHost::DiskOf(host_->Vm());
  config::Vm vm = host_->Vm();
  const std::string link = folder_ + "/" + "link_" + vm.id() + ".avhdx";
  std::filesystem::create_symlink(leaf, link);
  vm.mutable_disks(0)->set_path(link);
  vm.add_unneeded_disks(leaf);
  vm.add_unneeded_disks(base);
  vm.clear_parent_checkpoint();
  config::FileChange change;
  *change.add_store() = vm;
  *change.add_remove() = Named("one");
  ASSERT_TRUE(host_->inventory->Make(change).ok());
  Restart();
  ASSERT_TRUE(host_->Settle());
  EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "ab..");
  EXPECT_EQ(TestHost::DiskOf(host_->Vm()), base);
}

TEST_F(CheckpointsMergeTest, ALinkToADiskThatIsNotMergedStays) {
  host_->MakeVm("");
  const std::string other = folder_ + "/other.vhdx", link = folder_ + "/by-name.vhdx";
  virtdev::CreateDiskOptions options;
  options.size_bytes = 1 << 20;
  ASSERT_TRUE(virtdev::CreateDisk(other, options).ok());
  std::filesystem::create_symlink(other, link);
  ASSERT_TRUE(host_->Create("one").ok());
  config::Vm vm = host_->Vm();
  config::Disk* disk = vm.add_disks();
  disk->set_path(link);
  disk->set_lun(1);
  ASSERT_TRUE(host_->inventory->Store(vm).ok());
  ASSERT_TRUE(host_->Delete("one", false).ok());
  EXPECT_EQ(host_->Vm().disks(1).path(), link);
}

TEST_F(CheckpointsMergeTest, ALayerThatACheckpointStandsOnIsNotMergedByHand) {
  host_->MakeVm("");
  const std::string base = TestHost::DiskOf(host_->Vm());
  ASSERT_TRUE(host_->Create("one").ok());
  const std::string leaf = TestHost::DiskOf(host_->Vm());
  virtdev::CreateDiskOptions options;
  options.parent = leaf;
  const std::string child = folder_ + "/child.vhdx";
  ASSERT_TRUE(virtdev::CreateDisk(child, options).ok());
  config::Vm vm = host_->Vm();
  vm.mutable_disks(0)->set_path(child);
  ASSERT_TRUE(host_->inventory->Store(vm).ok());
  ImageFiles files;
  const auto check = [&](const std::string& path, bool offline) {
    const auto result = vmm::CheckMerge(path, offline, vmm::ImageUsersOf(*host_->inventory), files);
    return result.ok() ? "" : result.error().ToString();
  };
  EXPECT_THAT(check(leaf, false), HasSubstr("checkpoint 'one' of 't' stands on '" + base));
  EXPECT_EQ(check(child, false), "") << "no checkpoint stands on its parent";
  ASSERT_TRUE(host_->inventory
                  ->Make([&] {
                    config::FileChange change;
                    *change.add_remove() = Named("one");
                    return change;
                  }())
                  .ok());
  EXPECT_EQ(check(leaf, false), "");
  EXPECT_THAT(check(leaf, true), HasSubstr("merge '" + child + "' first"));
  EXPECT_EQ(check(child, true), "");
  EXPECT_EQ(check(base, true), "") << "there is nothing to merge it into";
  // Somebody else's child of the same parent.
  options.parent = base;
  ASSERT_TRUE(virtdev::CreateDisk(folder_ + "/other.vhdx", options).ok());
  EXPECT_THAT(check(folder_ + "/other.vhdx", true), HasSubstr("stands on '" + base + "' too"));
}

TEST_F(CheckpointsMergeTest, WhatADiskOfAnotherMachineStandsOnStays) {
  host_->MakeVm("");
  host_->Write(0, 'a');
  const std::string base = TestHost::DiskOf(host_->Vm());
  ASSERT_TRUE(host_->Create("one").ok());
  host_->Write(1, 'b');
  ASSERT_TRUE(vmm::MakeFolders(folder_ + "/clones").ok());
  virtdev::CreateDiskOptions options;
  options.parent = base;
  config::Vm clone = host_->Vm();
  clone.clear_id();
  clone.clear_parent_checkpoint();
  clone.set_name("u");
  clone.mutable_disks(0)->set_path(folder_ + "/clones/u.vhdx");
  ASSERT_TRUE(virtdev::CreateDisk(TestHost::DiskOf(clone), options).ok());
  const std::string id = host_->Id();
  ASSERT_TRUE(host_->inventory->Create(clone).ok());
  const auto deleted = host_->checkpoints->Delete(
      id, vmm::FindCheckpoint(host_->inventory->Checkpoints(id), "one").value(), false, "",
      nullptr);
  ASSERT_TRUE(host_->Finish(deleted).ok());
  EXPECT_EQ(TestHost::ContentOf(host_->Named("u")), "a...");
  EXPECT_EQ(TestHost::ContentOf(host_->Named("t")), "ab..");
  EXPECT_EQ(host_->Named("t").unneeded_disks_size(), 1) << "until the clone is gone";
}

TEST_F(CheckpointsMergeTest, ADiskThatIsGoneHoldsNothingUp) {
  host_->MakeVm("");
  ASSERT_TRUE(host_->Create("one").ok());
  ASSERT_TRUE(host_->Create("two").ok());
  config::Vm one = Named("one");
  config::Disk* gone = one.add_disks();
  gone->set_path(folder_ + "/gone.vhdx");
  gone->set_lun(1);
  ASSERT_TRUE(host_->inventory->Store(one).ok());
  ASSERT_TRUE(host_->Delete("two", false).ok());
  EXPECT_EQ(host_->Images().size(), 2u);
}

TEST_F(CheckpointsMergeTest, AReadOnlyDiskFollowsItsFileToo) {
  host_->MakeVm("");
  host_->Write(0, 'a');
  ASSERT_TRUE(host_->Create("one").ok());
  host_->Write(1, 'b');
  config::Vm vm = host_->Vm();
  vm.mutable_disks(0)->set_read_only(true);
  ASSERT_TRUE(host_->inventory->Store(vm).ok());
  ASSERT_TRUE(host_->Delete("one", false).ok());
  EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "ab..");
}

TEST_F(CheckpointsMergeTest, TheChildOfAVhdIsAVhd) {
  host_->MakeVm("");
  virtdev::CreateDiskOptions options;
  options.format = "vhd";
  options.size_bytes = TestHost::kBlocks * TestHost::kBlock;
  ASSERT_TRUE(virtdev::CreateDisk(folder_ + "/old.vhd", options).ok());
  config::Vm vm = host_->Vm();
  vm.set_generation(1);
  vm.mutable_disks(0)->set_path(folder_ + "/old.vhd");
  ASSERT_TRUE(host_->inventory->Store(vm).ok());
  host_->Write(0, 'a');
  ASSERT_TRUE(host_->Create("one").ok());
  EXPECT_THAT(TestHost::DiskOf(host_->Vm()), testing::EndsWith(".avhd"));
  host_->Write(1, 'b');
  EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "ab..");
  EXPECT_EQ(TestHost::ContentOf(Named("one")), "a...");
  ASSERT_TRUE(host_->Delete("one", false).ok());
  EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "ab..");
  EXPECT_EQ(TestHost::DiskOf(host_->Vm()), folder_ + "/old.vhd");
}

TEST_F(CheckpointsMergeTest, NobodyMergesOrResizesByHandWhatACheckpointStandsOn) {
  host_->MakeVm("");
  const std::string base = TestHost::DiskOf(host_->Vm());
  using ByHand = vmm::DiskOperations::ByHand;
  vmm::DiskOperations operations(*host_->inventory, vmm::DiskOperations::For::kUser);
  EXPECT_TRUE(operations.CheckByHand(base, ByHand::kResize).ok());
  EXPECT_THAT(operations.CheckByHand(base, ByHand::kOfflineMerge).error().ToString(),
              HasSubstr("detach it"));
  ASSERT_TRUE(host_->Create("one").ok());
  const std::string leaf = TestHost::DiskOf(host_->Vm());
  EXPECT_THAT(operations.CheckByHand(base, ByHand::kResize).error().ToString(),
              HasSubstr("vmctl checkpoint delete"));
  EXPECT_TRUE(operations.CheckByHand(leaf, ByHand::kResize).ok()) << "it may grow";
  EXPECT_THAT(operations.CheckByHand(leaf, ByHand::kMerge).error().ToString(),
              HasSubstr("vmctl checkpoint delete"));
  EXPECT_TRUE(operations.CheckByHand(folder_ + "/somebody's.vhdx", ByHand::kOfflineMerge).ok());
}

TEST_F(CheckpointsMergeTest, AMachineStartsWithoutTheAutomaticCheckpointThatCannotBe) {
  host_->MakeVm("");
  config::Vm vm = host_->Vm();
  vm.set_automatic_checkpoints(true);
  vm.set_checkpoint_policy(config::DISABLED);
  ASSERT_TRUE(host_->inventory->Store(vm).ok());
  std::optional<vmm::Result<void>> started;
  host_->checkpoints->Start(host_->Id(), [&](const auto& result) { started = result; });
  for (int i = 0; i < 500 && !started; ++i) host_->loop->RunOnce(10);
  ASSERT_TRUE(started.has_value());
  // This host's worker is no worker: it is the start that fails.
  EXPECT_THAT(started->error().ToString(), Not(HasSubstr("disabled")));
  EXPECT_THAT(started->error().ToString(), HasSubstr("its worker"));
}

}  // namespace
}  // namespace kvmbus::cmd
