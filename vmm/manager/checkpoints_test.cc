// SPDX-License-Identifier: Apache-2.0
// What a new vmmd does about a checkpoint that an earlier one had begun.
#include "vmm/manager/checkpoints.h"

#include <fstream>

#include "vmm/manager/manager_test_host.h"

namespace kvmbus::vmm {
namespace {

constexpr int kTurns = 1000;

/// Images that stand on nothing; counts who asks.
class FakeFiles final : public DiskFiles {
 public:
  Result<void> CreateChild(const std::string&, const std::string&) override { return {}; }
  Result<std::string> ParentOf(const std::string&) override {
    ++asked;
    return std::string();
  }
  Result<void> Merge(const std::string&, const Progress&) override { return {}; }
  Result<void> Reparent(const std::string&, const std::string&) override { return {}; }
  Result<void> Copy(const std::string&, const std::string&, const Progress&) override { return {}; }
  Result<void> Flatten(const std::string&, const std::string&, const Progress&) override {
    return {};
  }

  std::atomic<int> asked{0};
};

class CheckpointsTest : public ManagerTest {
 protected:
  void SetUp() override {
    vm_.set_folder(folder_ + "/state");
    vm_.add_disks()->set_path(folder_ + "/disk.vhdx");
    vm_.add_unneeded_disks(folder_ + "/old.avhdx");  // its merge is owed
    std::ofstream(folder_ + "/disk.vhdx") << "x";
    std::ofstream(folder_ + "/old.avhdx") << "x";
    StartWorker([this](const worker::Request& request) { return Answer(request); });
    ASSERT_TRUE(Store()->Save(vm_).ok());
    OpenInventory();
  }

  worker::Reply Answer(const worker::Request& request) {
    worker::Reply reply;
    if (request.has_hello()) {
      Greet(vm_, worker::PAUSED, process_.pid(), &reply);
    } else if (request.has_status()) {
      ++asked_;
      reply.mutable_status()->set_state(worker::PAUSED);
      reply.mutable_status()->set_capture_total(captures_ ? 100 : 0);
    }
    return reply;
  }
  SleepingProcess process_;
  bool captures_ = true;
  int asked_ = 0;
  FakeFiles files_;
  std::unique_ptr<Jobs> jobs_;
  std::unique_ptr<Checkpoints> checkpoints_;
};

TEST_F(CheckpointsTest, OneThatAWorkerStillMakesIsWaitedForAndNothingIsMergedMeanwhile) {
  config::Job job;
  job.set_kind(config::CREATE_CHECKPOINT);
  job.set_vm(kId);
  job.mutable_change();
  const std::string id =
      Jobs::Open(folder_ + "/jobs", loop_->clock()).value()->Begin(job).value().id();
  jobs_ = Jobs::Open(folder_ + "/jobs", loop_->clock()).value();
  checkpoints_ = std::make_unique<Checkpoints>(*loop_, *inventory_, *jobs_, files_);
  // The machine is paused, and known to be from the second time on.
  Turn([this] { return asked_ >= 3; }, kTurns);
  EXPECT_EQ(jobs_->Get(id)->state(), config::JOB_RUNNING);
  EXPECT_EQ(files_.asked, 0) << "a disk of a machine that is being captured";
  EXPECT_FALSE(inventory_->Reserve(kId, "by somebody else").ok());
  captures_ = false;
  Turn([&] { return jobs_->Get(id)->state() != config::JOB_RUNNING; }, kTurns);
  EXPECT_EQ(jobs_->Get(id)->state(), config::JOB_FAILED) << "it was not whole";
  Turn([this] { return files_.asked > 0; }, kTurns);
}

}  // namespace
}  // namespace kvmbus::vmm
