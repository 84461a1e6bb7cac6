// SPDX-License-Identifier: Apache-2.0
// What a new vmmd does about a checkpoint that an earlier one had begun.
#include "vmm/manager/checkpoints.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "tests/fakes/fake_worker.h"
#include "vmm/config/limits.h"
#include "vmm/os/file.h"

namespace kvmbus::vmm {
namespace {

constexpr const char* kId = "11111111-2222-3333-4444-555555555555";

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

class CheckpointsTest : public testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/checkpoints-test-XXXXXX";
    folder_ = ::mkdtemp(folder);
    loop_ = Loop::Create().value();
    vm_.set_id(kId);
    vm_.set_name("one");
    vm_.set_memory_bytes(uint64_t{1} << 30);
    vm_.set_folder(folder_ + "/state");
    vm_.mutable_firmware()->set_kernel("/kernel");
    vm_.add_disks()->set_path(folder_ + "/disk.vhdx");
    vm_.add_unneeded_disks(folder_ + "/old.avhdx");  // its merge is owed
    ApplyDefaults(&vm_);
    std::ofstream(folder_ + "/disk.vhdx") << "x";
    std::ofstream(folder_ + "/old.avhdx") << "x";
    process_ = ::fork();
    if (process_ == 0) {
      ::pause();
      ::_exit(0);
    }
    ASSERT_TRUE(MakeFolders(folder_ + "/run/" + kId).ok());
    worker_ = std::make_unique<tests::FakeWorker>(
        *loop_, folder_ + "/run/" + kId + "/worker.sock",
        [this](const worker::Request& request) { return Answer(request); });
    ASSERT_TRUE(OpenFileConfigStore(folder_ + "/state").value()->Save(vm_).ok());
    ASSERT_TRUE(MakeFolders(folder_ + "/jobs").ok());
    Inventory::Options options;
    options.state_dir = folder_ + "/state";
    options.run_dir = folder_ + "/run";
    options.worker_path = "/bin/false";
    options.check_host = [] { return std::vector<HostRequirement>(); };
    inventory_ = Inventory::Open(*loop_, std::move(options)).value();
  }
  void TearDown() override {
    checkpoints_.reset();
    inventory_.reset();
    worker_.reset();
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
    std::filesystem::remove_all(folder_);
  }

  worker::Reply Answer(const worker::Request& request) {
    worker::Reply reply;
    if (request.has_hello()) {
      *reply.mutable_hello()->mutable_config() = vm_;
      reply.mutable_hello()->mutable_status()->set_state(worker::PAUSED);
      reply.mutable_hello()->mutable_status()->set_pid(static_cast<uint32_t>(process_));
    } else if (request.has_status()) {
      ++asked_;
      reply.mutable_status()->set_state(worker::PAUSED);
      reply.mutable_status()->set_capture_total(captures_ ? 100 : 0);
    }
    return reply;
  }
  void Turn(const std::function<bool()>& until) {
    for (int i = 0; i < 1000 && !until(); ++i) loop_->RunOnce(10);
    ASSERT_TRUE(until());
  }

  std::string folder_;
  config::Vm vm_;
  pid_t process_ = 0;
  bool captures_ = true;
  int asked_ = 0;
  FakeFiles files_;
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<tests::FakeWorker> worker_;
  std::unique_ptr<Inventory> inventory_;
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
  Turn([this] { return asked_ >= 3; });
  EXPECT_EQ(jobs_->Get(id)->state(), config::JOB_RUNNING);
  EXPECT_EQ(files_.asked, 0) << "a disk of a machine that is being captured";
  EXPECT_FALSE(inventory_->Reserve(kId, "by somebody else").ok());
  captures_ = false;
  Turn([&] { return jobs_->Get(id)->state() != config::JOB_RUNNING; });
  EXPECT_EQ(jobs_->Get(id)->state(), config::JOB_FAILED) << "it was not whole";
  Turn([this] { return files_.asked > 0; });
}

}  // namespace
}  // namespace kvmbus::vmm
