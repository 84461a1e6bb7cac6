// SPDX-License-Identifier: Apache-2.0
// Exports and imports on real files.
#include <set>

#include "cmd/vmmd/checkpoints_test_host.h"
#include "vmm/config/config_file.h"
#include "vmm/config/vm_tree.h"

namespace kvmbus::cmd {
namespace {

namespace fs = std::filesystem;
using vmm::Code;
using vmm::ImportMode;

class TransfersTest : public testing::Test {
 protected:
  TransfersTest() {
    char folder[] = "/tmp/transfers-test-XXXXXX";
    folder_ = fs::canonical(::mkdtemp(folder)).string();
    fs::create_directory(folder_ + "/out");
    fs::create_directory(folder_ + "/in");
    host_ = std::make_unique<TestHost>(folder_);
    host_->MakeVm("m1");
    host_->Write(0, 'a');
  }
  ~TransfersTest() override { fs::remove_all(folder_); }

  /// Two checkpoints, and something after them.
  void Grow() {
    ASSERT_TRUE(host_->Create("one").ok());
    host_->SaveWith("m2");
    host_->Write(1, 'b');
    ASSERT_TRUE(host_->Create("two").ok());
    host_->SaveWith("m3");
    host_->Write(2, 'c');
  }
  std::string out() const { return folder_ + "/out"; }
  vmm::ImportOptions From(const std::string& id, ImportMode mode) const {
    vmm::ImportOptions options;
    options.file = out() + "/t/Virtual Machines/" + id + ".vmcx";
    options.mode = mode;
    options.destination = folder_ + "/in";
    return options;
  }
  /// What is above the exported one and was in use is not there any more.
  void TakeTheOriginalAway() {
    for (const std::string& image : host_->Images()) fs::rename(image, image + ".away");
  }
  static std::set<std::string> FilesIn(const std::string& folder) {
    std::set<std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder))
      files.insert(entry.path().string());
    return files;
  }
  vmm::Error ErrorOf(const vmm::Result<void>& result) {
    return result.ok() ? vmm::Error(Code::kOk, "it worked") : result.error();
  }

  std::string folder_;
  std::unique_ptr<TestHost> host_;
};

TEST_F(TransfersTest, AnExportIsAMachineWithAllItsCheckpoints) {
  Grow();
  const config::Vm before = host_->Vm();
  const std::string id = host_->Id();
  const auto exported = host_->Export(out());
  ASSERT_TRUE(exported.ok()) << exported.error().ToString();
  EXPECT_EQ(host_->Vm().SerializeAsString(), before.SerializeAsString());
  EXPECT_EQ(host_->ContentOf(host_->Vm()), "abc.");
  TakeTheOriginalAway();

  vmm::ImportOptions options = From(id, ImportMode::kCopy);
  options.name = "copy";
  const auto imported = host_->Import(options);
  ASSERT_TRUE(imported.ok()) << imported.error().ToString();
  fs::remove_all(out());  // nor is the export needed any more
  TestHost next(folder_);
  const config::Vm copy = next.Named("copy");
  EXPECT_NE(copy.id(), id);
  EXPECT_NE(copy.generation_id(), before.generation_id());
  EXPECT_EQ(copy.folder(), folder_ + "/in/copy");
  EXPECT_EQ(TestHost::ContentOf(copy), "abc.");
  EXPECT_EQ(next.MemoryOf(copy), "m3");
  const vmm::CheckpointMap checkpoints = next.inventory->Checkpoints(copy.id());
  ASSERT_EQ(checkpoints.size(), 2u);
  for (const auto& [checkpoint_id, checkpoint] : checkpoints) {
    EXPECT_EQ(host_->inventory->Checkpoints(id).count(checkpoint_id), 0u) << "another id";
    const bool is_one = checkpoint.checkpoint().name() == "one";
    EXPECT_EQ(TestHost::ContentOf(checkpoint), is_one ? "a..." : "ab..");
    EXPECT_EQ(next.MemoryOf(checkpoint), is_one ? "m1" : "m2");
    if (is_one) continue;
    EXPECT_EQ(copy.parent_checkpoint(), checkpoint_id);
    EXPECT_EQ(checkpoints.at(checkpoint.checkpoint().parent()).checkpoint().name(), "one");
  }
  EXPECT_EQ(vmm::ReadWholeFile(copy.firmware().kernel()).value_or(""), "kernel");
  EXPECT_TRUE(copy.firmware().kernel().starts_with(copy.folder()));
}

TEST_F(TransfersTest, ACopyIsAnswerableToItself) {
  Grow();
  ASSERT_TRUE(host_->Export(out()).ok());
  vmm::ImportOptions options = From(host_->Id(), ImportMode::kCopy);
  options.name = "copy";
  ASSERT_TRUE(host_->Import(options).ok());
  const std::string id = host_->Named("copy").id();
  ASSERT_TRUE(host_->Finish(host_->checkpoints->Apply(id, "one", false, "", nullptr)).ok());
  EXPECT_EQ(TestHost::ContentOf(host_->Named("copy")), "a...");
  ASSERT_TRUE(host_->Finish(host_->checkpoints->Delete(id, "one", true, "", nullptr)).ok());
  ASSERT_TRUE(host_->Settle());
  EXPECT_EQ(TestHost::ContentOf(host_->Named("copy")), "a...");
  EXPECT_EQ(host_->inventory->Checkpoints(host_->Named("t").id()).size(), 2u) << "they stay";
  EXPECT_EQ(TestHost::ContentOf(host_->Named("t")), "abc.");
}

TEST_F(TransfersTest, ACheckpointIsExportedAsAMachineWithoutAny) {
  Grow();
  const auto exported = host_->Export(out(), "two");
  ASSERT_TRUE(exported.ok()) << exported.error().ToString();
  TakeTheOriginalAway();
  const std::set<std::string> files = FilesIn(out() + "/t/Virtual Hard Disks");
  EXPECT_EQ(files, std::set{out() + "/t/Virtual Hard Disks/disk.vhdx"});
  EXPECT_EQ(virtdev::ParentOfDisk(*files.begin()).value(), "");
  vmm::ImportOptions options = From(host_->Id(), ImportMode::kCopy);
  options.name = "copy";
  const auto imported = host_->Import(options);
  ASSERT_TRUE(imported.ok()) << imported.error().ToString();
  const config::Vm copy = host_->Named("copy");
  EXPECT_EQ(TestHost::ContentOf(copy), "ab..");
  EXPECT_EQ(host_->MemoryOf(copy), "m2");
  EXPECT_FALSE(copy.has_checkpoint());
  EXPECT_EQ(copy.parent_checkpoint(), "");
  EXPECT_TRUE(host_->inventory->Checkpoints(copy.id()).empty());
}

TEST_F(TransfersTest, WhatIsBeingExportedIsNotDeleted) {
  Grow();
  vmm::Transfers::ExportOptions options;
  options.vm = host_->Id();
  options.folder = out();
  options.checkpoint = "two";
  const auto begun = host_->transfers->Export(options, nullptr);
  ASSERT_TRUE(begun.ok());
  const auto remove = [this](const std::string& which, bool subtree) {
    const auto job = host_->checkpoints->Delete(host_->Id(), which, subtree, "", nullptr);
    return job.ok() ? host_->Finish(*job) : job.error();
  };
  EXPECT_EQ(ErrorOf(remove("two", false)).code(), Code::kFailedPrecondition);
  EXPECT_EQ(ErrorOf(remove("one", true)).code(), Code::kFailedPrecondition);
  EXPECT_EQ(ErrorOf(host_->inventory->Delete(host_->Id())).code(), Code::kFailedPrecondition);
  options.checkpoint.clear();
  EXPECT_FALSE(host_->transfers->Export(options, nullptr).ok()) << "another one of the whole";
  ASSERT_TRUE(host_->Finish(*begun).ok());
  EXPECT_TRUE(remove("two", false).ok());
}

TEST_F(TransfersTest, ARestoredOneKeepsItsId) {
  const std::string id = host_->Id();
  ASSERT_TRUE(host_->Export(out()).ok());
  const auto refused = ErrorOf(host_->Import(From(id, ImportMode::kRestore)));
  EXPECT_EQ(refused.code(), Code::kFailedPrecondition);
  EXPECT_NE(refused.ToString().find("--copy"), std::string::npos) << refused.ToString();
  ASSERT_TRUE(host_->inventory->Delete(id).ok());
  ASSERT_TRUE(host_->Import(From(id, ImportMode::kRestore)).ok());
  EXPECT_EQ(host_->Named("t").id(), id);
  EXPECT_EQ(TestHost::ContentOf(host_->Named("t")), "a...");
}

TEST_F(TransfersTest, AnExportIsUsedWhereItIs) {
  const std::string id = host_->Id();
  ASSERT_TRUE(host_->Export(out()).ok());
  ASSERT_TRUE(host_->inventory->Delete(id).ok());
  TakeTheOriginalAway();
  const auto registered = host_->Import(From(id, ImportMode::kRegister));
  ASSERT_TRUE(registered.ok()) << registered.error().ToString();
  EXPECT_EQ(TestHost::ContentOf(host_->Named("t")), "a...");
  EXPECT_EQ(host_->Named("t").folder(), out() + "/t");
}

TEST_F(TransfersTest, DisksOfOneNameGetTwo) {
  fs::create_directory(folder_ + "/other");
  fs::copy(TestHost::DiskOf(host_->Vm()), folder_ + "/other/disk.vhdx");
  config::Vm vm = host_->Vm();
  config::Disk* second = vm.add_disks();
  second->set_path(folder_ + "/other/disk.vhdx");
  second->set_lun(1);
  ASSERT_TRUE(host_->inventory->Store(vm).ok());
  ASSERT_TRUE(host_->Export(out()).ok());
  EXPECT_EQ(FilesIn(out() + "/t/Virtual Hard Disks").size(), 2u);
}

TEST_F(TransfersTest, WhatIsThereStays) {
  fs::create_directory(out() + "/t");
  ASSERT_TRUE(vmm::ReplaceFile(out() + "/t/letter", "dear").ok());
  EXPECT_EQ(ErrorOf(host_->Export(out())).code(), Code::kAlreadyExists);
  EXPECT_EQ(FilesIn(out()).size(), 2u);
  EXPECT_EQ(ErrorOf(host_->Export(folder_ + "/none")).code(), Code::kNotFound);
}

TEST_F(TransfersTest, AFailureLeavesNothing) {
  Grow();
  fs::remove(host_->Vm().firmware().kernel());
  EXPECT_EQ(ErrorOf(host_->Export(out())).code(), Code::kNotFound);
  EXPECT_TRUE(FilesIn(out()).empty());
  ASSERT_TRUE(vmm::ReplaceFile(host_->Vm().firmware().kernel(), "kernel").ok());
  // Somebody has it; what was copied before goes.
  const auto used = virtdev::OpenBlockFile(TestHost::DiskOf(host_->Vm()), false);
  ASSERT_TRUE(used.ok());
  EXPECT_EQ(ErrorOf(host_->Export(out())).code(), Code::kUnavailable);
  EXPECT_TRUE(FilesIn(out()).empty());
}

TEST_F(TransfersTest, ACancelledOneLeavesNothing) {
  vmm::Transfers::ExportOptions options;
  options.vm = host_->Id();
  options.folder = out();
  options.request_id = "r";
  const auto job = host_->transfers->Export(options, nullptr);
  ASSERT_TRUE(job.ok());
  EXPECT_EQ(host_->transfers->Export(options, nullptr)->id(), job->id());
  ASSERT_TRUE(host_->jobs->Cancel(job->id()).ok());
  ASSERT_TRUE(host_->Settle());
  const config::Job ended = *host_->jobs->Get(job->id());
  EXPECT_EQ(ended.state(), config::JOB_CANCELLED) << ended.error();
  EXPECT_TRUE(FilesIn(out()).empty());
  EXPECT_TRUE(host_->Export(out()).ok()) << "it is not busy any more";
}

TEST_F(TransfersTest, NobodyChangesItsFilesMeanwhile) {
  vmm::Transfers::ExportOptions options;
  options.vm = host_->Id();
  options.folder = out();
  const auto job = host_->transfers->Export(options, nullptr);
  ASSERT_TRUE(job.ok());
  EXPECT_EQ(host_->inventory->DiscardSaved(host_->Id()).error().code(), Code::kFailedPrecondition);
  EXPECT_EQ(host_->inventory->Delete(host_->Id()).error().code(), Code::kFailedPrecondition);
  EXPECT_TRUE(host_->Finish(job).ok());
  EXPECT_TRUE(host_->inventory->DiscardSaved(host_->Id()).ok());
}

TEST_F(TransfersTest, AnotherVersionIsCopiedNotUsed) {
  const std::string id = host_->Id();
  host_->SaveWith("");
  ASSERT_TRUE(host_->Export(out()).ok());
  const std::string file = From(id, ImportMode::kCopy).file;
  vmm::Key tree = vmm::ReadConfigTree(file).value();
  tree.Make("configuration/properties/version").value = int64_t{0x900};
  tree.Make("configuration/new_in_9").value = std::string("kept");
  ASSERT_TRUE(vmm::ReplaceFile(file, vmm::FormatConfigTree(file, tree).value()).ok());
  ASSERT_TRUE(host_->inventory->Delete(id).ok());

  const auto refused = ErrorOf(host_->Import(From(id, ImportMode::kRegister)));
  EXPECT_NE(refused.ToString().find("--copy"), std::string::npos) << refused.ToString();
  const auto compared = host_->transfers->Import(From(id, ImportMode::kRestore), true, "", nullptr);
  ASSERT_TRUE(compared.ok());
  EXPECT_TRUE(compared->plan.obstacles.empty());
  ASSERT_FALSE(compared->plan.incompatibilities.empty());
  EXPECT_EQ(compared->plan.incompatibilities[0].what, "configuration version 9.0");
  const auto imported = host_->Import(From(id, ImportMode::kRestore));
  ASSERT_TRUE(imported.ok()) << imported.error().ToString();
  const config::Vm vm = host_->Named("t");
  EXPECT_EQ(vm.version(), "6.2");
  EXPECT_EQ(TestHost::ContentOf(vm), "a...");
  const vmm::Key kept = vmm::ReadConfigTree(vmm::ConfigFileOf(vm)).value();
  ASSERT_NE(kept.Find("configuration/new_in_9"), nullptr);
}

TEST_F(TransfersTest, AStrangersImageStandsOnNoFileOfOurs) {
  ASSERT_TRUE(host_->Create("one").ok());
  const std::string id = host_->Id();
  ASSERT_TRUE(host_->Export(out()).ok());
  // What the disks of the folder that is given may stand on, by their own rules: it lies above.
  const std::string disks = out() + "/t/Virtual Hard Disks", secret = out() + "/t/secret.vhdx";
  fs::rename(disks + "/disk.vhdx", secret);
  for (const std::string& leaf : FilesIn(disks))
    ASSERT_TRUE(virtdev::ReparentDisk(leaf, secret, false).ok());
  fs::create_directory(folder_ + "/m");
  fs::rename(out() + "/t/Virtual Machines", folder_ + "/m/Virtual Machines");
  fs::rename(out() + "/t/Snapshots", folder_ + "/m/Snapshots");
  vmm::ImportOptions options = From(id, ImportMode::kCopy);
  options.name = "copy";
  options.file = folder_ + "/m/Virtual Machines/" + id + ".vmcx";
  options.folders = {disks, folder_};  // of everything: nothing is in the way
  const auto allowed = host_->transfers->Import(options, true, "", nullptr);
  ASSERT_TRUE(allowed.ok()) << allowed.error().ToString();
  EXPECT_TRUE(allowed->plan.obstacles.empty()) << allowed->plan.obstacles[0].what;
  options.folders = {disks};
  const auto compared = host_->transfers->Import(options, true, "", nullptr);
  ASSERT_TRUE(compared.ok()) << compared.error().ToString();
  const auto& obstacles = compared->plan.obstacles;
  EXPECT_TRUE(std::any_of(obstacles.begin(), obstacles.end(), [&secret](const auto& obstacle) {
    return obstacle.what.starts_with("'" + secret + "', on which disk");
  }));
}

}  // namespace
}  // namespace kvmbus::cmd
