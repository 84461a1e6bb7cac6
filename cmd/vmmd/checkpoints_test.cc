// SPDX-License-Identifier: Apache-2.0
// Checkpoints of machines that do not run, on real files. What workers do, the guest tests show.
#include "vmm/manager/checkpoints.h"

#include <gmock/gmock.h>

#include <map>
#include <random>

#include "cmd/vmmd/checkpoints_test_host.h"

namespace kvmbus::cmd {
namespace {

using testing::HasSubstr;
using vmm::Code;

class CheckpointsTest : public TestHostTest {
 protected:
  CheckpointsTest() : TestHostTest("checkpoints-test") {}
};

TEST_F(CheckpointsTest, WhatWasIsKeptAndComesBack) {
  host_->MakeVm("memory 1");
  host_->Write(0, 'a');
  ASSERT_TRUE(host_->Create("one").ok());
  host_->SaveWith("memory 2");
  host_->Write(1, 'b');
  EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "ab..");
  EXPECT_EQ(TestHost::ContentOf(Named("one")), "a...");
  const std::string before = host_->Vm().generation_id();
  ASSERT_TRUE(host_->Apply("one").ok());
  EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "a...");
  EXPECT_EQ(host_->MemoryOf(host_->Vm()), "memory 1");
  EXPECT_EQ(host_->MemoryOf(Named("one")), "memory 1");
  EXPECT_NE(host_->Vm().generation_id(), before);
  EXPECT_EQ(host_->Vm().parent_checkpoint(), Named("one").checkpoint().id());
  EXPECT_EQ(host_->Images().size(), 2u) << "the abandoned leaf is gone";
}

TEST_F(CheckpointsTest, AnApplyThatKeepsWhatIsNowEndsWhenBothAreDone) {
  host_->MakeVm("memory 1");
  ASSERT_TRUE(host_->Create("one").ok());
  host_->SaveWith("memory 2");
  const std::string one = Named("one").checkpoint().id();
  const auto apply = [&](const std::string& request) {
    return host_->checkpoints->Apply(host_->Id(), one, true, request, nullptr);
  };
  const auto job = apply("request");
  ASSERT_TRUE(job.ok()) << job.error().ToString();
  EXPECT_EQ(job->kind(), config::APPLY_CHECKPOINT);
  EXPECT_EQ(apply("request")->id(), job->id());
  for (int i = 0; i < 1000 && host_->jobs->Get(job->id())->state() == config::JOB_RUNNING; ++i)
    host_->loop->RunOnce(10);
  EXPECT_TRUE(host_->inventory->Reserve(host_->Id(), "the next one's").ok()) << "it is free again";
  host_->inventory->Release(host_->Id());
  EXPECT_EQ(host_->All().size(), 2u);
  EXPECT_EQ(host_->MemoryOf(host_->Vm()), "memory 1");

  // What is now cannot be kept: nothing is applied either.
  config::Vm vm = host_->Vm();
  vm.set_checkpoint_policy(config::DISABLED);
  ASSERT_TRUE(host_->inventory->Store(vm).ok());
  host_->SaveWith("memory 3");
  EXPECT_THAT(apply("other").error().ToString(), HasSubstr("disabled"));
  EXPECT_EQ(host_->MemoryOf(host_->Vm()), "memory 3");
}

/// vmmd ends while the checkpoint before the apply is made.
TEST_F(CheckpointsTest, AnApplyThatHadNotBegunIsGivenUpByTheNextService) {
  host_->MakeVm("memory 1");
  ASSERT_TRUE(host_->Create("one").ok());
  host_->SaveWith("memory 2");
  const std::string one = Named("one").checkpoint().id();
  const auto job = host_->checkpoints->Apply(host_->Id(), one, true, "", nullptr);
  ASSERT_TRUE(job.ok());
  Restart();
  ASSERT_TRUE(host_->Settle());
  EXPECT_EQ(host_->jobs->Get(job->id())->error_code(), static_cast<uint32_t>(Code::kAborted));
  EXPECT_EQ(host_->MemoryOf(host_->Vm()), "memory 2");
  EXPECT_TRUE(host_->Apply("one").ok());
}

TEST_F(CheckpointsTest, OneWithoutMemoryLeavesTheMachineOff) {
  host_->MakeVm("");
  ASSERT_TRUE(host_->Create("one").ok());
  host_->SaveWith("memory");
  ASSERT_TRUE(host_->Apply("one").ok());
  EXPECT_FALSE(host_->Vm().saved());
  EXPECT_NE(vmm::ReadWholeFile(vmm::StateFileOf(host_->Vm())).value_or(""), "memory");
}

/// Saved states of 5.0 have folders of their own, which a save or a checkpoint makes first.
TEST_F(CheckpointsTest, OneOfVersionFiveAppliesToAMachineThatHasNoSavedState) {
  host_->MakeVm("memory 1", "5.0");
  ASSERT_TRUE(host_->Create("one").ok());
  host_->SaveWith("");
  std::filesystem::remove_all(vmm::FolderOf(vmm::StateFileOf(host_->Vm())));
  ASSERT_TRUE(host_->Apply("one").ok());
  EXPECT_EQ(host_->MemoryOf(host_->Vm()), "memory 1");
  EXPECT_TRUE(vmm::FileExists(vmm::MemoryFileOf(host_->Vm())));
}

TEST_F(CheckpointsTest, ARestartFindsTheTree) {
  host_->MakeVm("m");
  ASSERT_TRUE(host_->Create("one").ok());
  ASSERT_TRUE(host_->Create("two").ok());
  Restart();
  EXPECT_EQ(Named("two").checkpoint().parent(), Named("one").checkpoint().id());
  EXPECT_EQ(host_->Vm().parent_checkpoint(), Named("two").checkpoint().id());
}

TEST_F(CheckpointsTest, DeletingMergesDisksAndMovesChildrenUp) {
  host_->MakeVm("m");
  for (const char letter : {'a', 'b', 'c'}) {
    host_->Write(static_cast<uint64_t>(letter - 'a'), letter);
    ASSERT_TRUE(host_->Create(std::string(1, letter)).ok());
  }
  host_->Write(3, 'd');
  ASSERT_TRUE(host_->Delete("b", false).ok());
  EXPECT_EQ(Named("c").checkpoint().parent(), Named("a").checkpoint().id());
  EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "abcd");
  EXPECT_EQ(TestHost::ContentOf(Named("c")), "abc.");
  EXPECT_EQ(TestHost::ContentOf(Named("a")), "a...");
  EXPECT_EQ(host_->Images().size(), 3u);
  ASSERT_TRUE(host_->Delete("a", true).ok());
  EXPECT_TRUE(host_->All().empty());
  EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "abcd");
  EXPECT_EQ(host_->Images(), std::vector<std::string>{folder_ + "/disk.vhdx"});
  EXPECT_EQ(TestHost::DiskOf(host_->Vm()), folder_ + "/disk.vhdx");
}

/// Of a machine whose worker leaves its last words, if any, and ends.
TEST_F(CheckpointsTest, AnAutomaticOneIsThereUnlessTheLastRunEndedWell) {
  const std::string worker = folder_ + "/worker", words = folder_ + "/words";
  ASSERT_TRUE(
      vmm::ReplaceFile(worker, "#!/bin/sh\ncp " + words + " \"$2/exit\" 2>/dev/null\n").ok());
  std::filesystem::permissions(worker, std::filesystem::perms::owner_all);
  host_.reset();
  host_ = std::make_unique<TestHost>(folder_, worker);
  host_->MakeVm("");
  config::Vm vm = host_->Vm();
  vm.set_automatic_checkpoints(true);
  ASSERT_TRUE(host_->inventory->Store(vm).ok());
  const auto run = [&] {
    bool ended = false;
    host_->checkpoints->Start(vm.id(), [&](const auto&) { ended = true; });
    for (int i = 0; i < 1000 && !ended; ++i) host_->loop->RunOnce(10);
    EXPECT_TRUE(ended && host_->Settle());
    std::vector<std::string> automatic;
    for (const auto& [id, checkpoint] : host_->All()) {
      if (checkpoint.checkpoint().automatic()) automatic.push_back(id);
    }
    return automatic;
  };
  worker::ExitRecord record;
  record.set_reason("guest shut down");
  ASSERT_TRUE(vmm::ReplaceFile(words, record.SerializeAsString()).ok());
  EXPECT_EQ(run(), std::vector<std::string>());
  EXPECT_EQ(host_->Images().size(), 1u);
  std::filesystem::remove(words);
  const auto first = run();  // and the run before it had ended well
  ASSERT_EQ(first.size(), 1u);
  const auto second = run();
  ASSERT_EQ(second.size(), 1u);
  EXPECT_NE(first, second) << "it is of the last start";
  EXPECT_EQ(host_->Images().size(), 2u);

  // A run that ends well while no service looks on, and one that does not.
  Restart();
  ASSERT_TRUE(host_->Settle());
  EXPECT_EQ(host_->All().size(), 1u);
  ASSERT_TRUE(
      vmm::ReplaceFile(folder_ + "/run/" + vm.id() + "/exit", record.SerializeAsString()).ok());
  Restart();
  ASSERT_TRUE(host_->Settle());
  EXPECT_TRUE(host_->All().empty());
  EXPECT_EQ(host_->Images().size(), 1u);
}

/// Its folder is not mounted yet when vmmd starts.
TEST_F(CheckpointsTest, WhatWasDecidedForAMachineThatCannotBeReadWaitsForIt) {
  host_->MakeVm("");
  config::Vm renamed = host_->Vm();
  const std::string file = vmm::ConfigFileOf(renamed);
  renamed.set_name("renamed");
  config::Job job;
  job.set_kind(config::DELETE_CHECKPOINT);
  job.set_vm(renamed.id());
  job = host_->jobs->Begin(job).value();
  job.set_committed(true);
  *job.mutable_change()->add_store() = renamed;
  ASSERT_TRUE(host_->jobs->Store(job).ok());
  std::filesystem::rename(file, file + ".away");
  Restart();
  EXPECT_EQ(host_->jobs->Get(job.id())->state(), config::JOB_RUNNING);
  std::filesystem::rename(file + ".away", file);
  Restart();
  ASSERT_TRUE(host_->Settle());
  EXPECT_EQ(host_->jobs->Get(job.id())->state(), config::JOB_DONE);
  EXPECT_EQ(host_->Vm().name(), "renamed");
}

TEST_F(CheckpointsTest, TheSameRequestIsTheSameJob) {
  host_->MakeVm("");
  vmm::Checkpoints::CreateOptions options;
  options.vm = host_->Id();
  options.name = "once";
  options.request_id = "r1";
  const auto first = host_->checkpoints->Create(options, nullptr);
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(host_->Settle());
  const auto again = host_->checkpoints->Create(options, nullptr);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->id(), first->id());
  EXPECT_EQ(host_->All().size(), 1u);
  Restart();
  EXPECT_EQ(host_->checkpoints->Create(options, nullptr)->id(), first->id());
}

TEST_F(CheckpointsTest, WhatCannotBeIsRefused) {
  host_->MakeVm("");
  EXPECT_EQ(host_->Apply("none").error().code(), Code::kNotFound);
  EXPECT_EQ(host_->Create(std::string(101, 'x')).error().code(), Code::kInvalidArgument);
  config::Vm vm = host_->Vm();
  vm.set_checkpoint_policy(config::DISABLED);
  ASSERT_TRUE(host_->inventory->Store(vm).ok());
  EXPECT_THAT(host_->Create("x").error().ToString(), HasSubstr("disabled"));
  vm.set_checkpoint_policy(config::STANDARD);
  vm.mutable_disks(0)->set_shared(true);
  ASSERT_TRUE(host_->inventory->Store(vm).ok());
  EXPECT_THAT(host_->Create("x").error().ToString(), HasSubstr("shared"));
}

TEST_F(CheckpointsTest, AFailureLeavesNothing) {
  host_->MakeVm("");
  config::Vm vm = host_->Vm();
  *vm.add_disks() = vm.disks(0);
  vm.mutable_disks(1)->set_path(folder_ + "/missing.vhdx");
  vm.mutable_disks(1)->set_lun(1);
  ASSERT_TRUE(host_->inventory->Store(vm).ok());
  EXPECT_EQ(host_->Create("x").error().code(), Code::kNotFound);
  EXPECT_EQ(host_->Images().size(), 1u);
  EXPECT_TRUE(host_->All().empty());
  EXPECT_EQ(TestHost::DiskOf(host_->Vm()), folder_ + "/disk.vhdx");
}

TEST_F(CheckpointsTest, OfADeletedMachineTheDisksStay) {
  host_->MakeVm("m");
  host_->Write(0, 'a');
  ASSERT_TRUE(host_->Create("one").ok());
  const config::Vm vm = host_->Vm(), checkpoint = Named("one");
  ASSERT_TRUE(host_->inventory->Delete(host_->Id()).ok());
  EXPECT_EQ(TestHost::ContentOf(vm), "a...");
  EXPECT_EQ(host_->Images().size(), 2u);
  EXPECT_FALSE(std::filesystem::exists(vmm::ConfigFileOf(checkpoint)));
  EXPECT_FALSE(std::filesystem::exists(vmm::StateFileOf(checkpoint)));
  Restart();
  EXPECT_TRUE(host_->inventory->List().empty());
}

/// Any order of things, against a plain model.
TEST_F(CheckpointsTest, GeneratedSequencesKeepEveryCheckpoint) {
  std::mt19937 random{5};
  host_->MakeVm("m");
  struct Moment {
    std::string content, memory;
  };
  std::map<std::string, Moment> model;  // by name
  std::string now = "....";
  std::string memory = "m";
  int serial = 0;
  for (int step = 0; step < 60; ++step) {
    const auto some = [&] {
      auto at = model.begin();
      std::advance(at, static_cast<long>(random() % model.size()));
      return at->first;
    };
    switch (random() % 5) {
      case 0: {
        const uint64_t block = random() % TestHost::kBlocks;
        now[block] = static_cast<char>('a' + step % 26);
        memory = "m" + std::to_string(step);
        host_->SaveWith(memory);
        host_->Write(block, now[block]);
        break;
      }
      case 1:
      case 2: {
        if (model.size() > 7) break;
        const std::string name = "c" + std::to_string(++serial);
        ASSERT_TRUE(host_->Create(name).ok());
        model[name] = {now, memory};
        break;
      }
      case 3: {
        if (model.empty()) break;
        const std::string name = some();
        ASSERT_TRUE(host_->Apply(name).ok());
        now = model[name].content;
        memory = model[name].memory;
        break;
      }
      case 4: {
        if (model.empty()) break;
        const std::string name = some();
        const auto deleted = host_->Delete(name, false);
        ASSERT_TRUE(deleted.ok()) << deleted.error().ToString();
        model.erase(name);
        break;
      }
    }
    if (random() % 8 == 0) Restart();
    ASSERT_EQ(TestHost::ContentOf(host_->Vm()), now) << "step " << step;
    ASSERT_EQ(host_->MemoryOf(host_->Vm()), memory);
    ASSERT_EQ(host_->All().size(), model.size());
    for (const auto& [name, moment] : model) {
      ASSERT_EQ(TestHost::ContentOf(Named(name)), moment.content) << name << ", step " << step;
      ASSERT_EQ(host_->MemoryOf(Named(name)), moment.memory) << name;
    }
  }
}

/// What the machine has saved later is not for the checkpoint's disks.
TEST_F(CheckpointsTest, OneWhoseSavedStateIsMissingIsNotApplied) {
  for (const char* version : {"6.2", "5.0"}) {
    host_->MakeVm("memory 1", version);
    host_->Write(0, 'a');
    ASSERT_TRUE(host_->Create("one").ok());
    host_->SaveWith("memory 2");
    host_->Write(1, 'b');
    const auto images = host_->Images().size();
    ASSERT_TRUE(vmm::RemoveFile(vmm::MemoryFileOf(Named("one"))).ok());
    const auto applied = host_->Apply("one");
    ASSERT_FALSE(applied.ok());
    EXPECT_EQ(applied.error().code(), Code::kNotFound) << applied.error().ToString();
    EXPECT_EQ(host_->MemoryOf(host_->Vm()), "memory 2");
    EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "ab..");
    EXPECT_EQ(host_->Images().size(), images);
    EXPECT_TRUE(host_->Create("two").ok()) << "the machine is free";
    Restart();
    EXPECT_EQ(TestHost::ContentOf(host_->Vm()), "ab..");
    host_.reset();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    host_ = std::make_unique<TestHost>(folder_);
  }
}

TEST_F(CheckpointsTest, OneOfALongNameInOtherLettersIsMade) {
  host_->MakeVm("");
  config::Vm vm = host_->Vm();
  vm.clear_name();
  for (int i = 0; i < 36; ++i) vm.set_name(vm.name() + "Ж");
  ASSERT_TRUE(host_->inventory->Store(vm).ok());
  const auto made = host_->Create("");
  EXPECT_TRUE(made.ok()) << made.error().ToString();
  vm = host_->Vm();
  vm.set_name("a" + vm.name());
  ASSERT_TRUE(host_->inventory->Store(vm).ok());
  EXPECT_TRUE(host_->Create("").ok()) << "another byte is in the way";
  Restart();
  EXPECT_EQ(host_->All().size(), 2u);
}

}  // namespace
}  // namespace kvmbus::cmd
