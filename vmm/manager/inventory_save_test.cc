// SPDX-License-Identifier: Apache-2.0
// The manager's part of saving a machine, with a worker that answers as the test tells it.
#include <fstream>
#include <optional>

#include "vmm/manager/manager_test_host.h"
#include "vmm/manager/state_jobs.h"

namespace kvmbus::vmm {
namespace {

/// A merge that ends when the test says so.
class SlowMerge final : public ImageWorker {
 public:
  void Suspend(const std::string&, std::function<void()> idle) override {
    ++suspended;
    if (!working) return idle();
    idle_ = std::move(idle);
  }
  void Resume(const std::string&) override { --suspended; }
  void StandAside() {
    working = false;
    std::exchange(idle_, nullptr)();
  }

  bool working = false;
  int suspended = 0;

 private:
  std::function<void()> idle_;
};

class InventorySaveTest : public ManagerTest {
 protected:
  void SetUp() override {
    vm_.set_folder(folder_ + "/state");
    StartWorker([this](const worker::Request& request) { return Answer(request); });
    ASSERT_TRUE(Store()->Save(vm_).ok());
    Open();
    Turn([this] { return inventory_->Get(kId)->status.pid() != 0; });
  }
  void Open() {
    OpenInventory();
    inventory_->SetImageWorker(&merge_);
  }

  std::optional<worker::Reply> Answer(const worker::Request& request) {
    worker::Reply reply;
    if (request.has_hello()) {
      Greet(vm_, state_, process_.pid(), &reply);
      reply.mutable_hello()->mutable_status()->set_capturing(capturing_);
      reply.mutable_hello()->mutable_status()->set_restored(restored_);
    } else if (request.has_status()) {
      ++asked_;
      reply.mutable_status()->set_state(state_);
      reply.mutable_status()->set_capturing(capturing_);
    } else if (request.has_capture() && hangs_up_) {
      capturing_ = true;
      return std::nullopt;
    } else if (request.has_capture()) {
      ++captures_;
      EXPECT_TRUE(request.capture().stop() && request.capture().compress());
      if (fails_)
        reply.mutable_failure()->set_code(static_cast<uint32_t>(Code::kResourceExhausted));
      else
        reply.mutable_capture();
    } else if (request.has_resume()) {
      if (++resumes_ == 1) return std::nullopt;
      restored_ = false;
      state_ = worker::RUNNING;
    } else if (request.has_turn_off()) {
      process_.Kill();
    }
    return reply;
  }
  void Save() {
    result_.reset();
    inventory_->Save(kId, true, [this](const Result<void>& saved) { result_ = saved; });
  }

  std::string State() const { return folder_ + "/state/Virtual Machines/" + kId + ".vmrs"; }
  /// As a worker writes it: what it has not renamed yet, and what it has.
  void WriteState() {
    for (const std::string& path : {State() + ".new", State()})
      std::ofstream(path) << std::string(1 << 20, 'x');
  }
  void ExpectTidy() const {
    EXPECT_FALSE(std::filesystem::exists(State() + ".new"));
    EXPECT_LT(std::filesystem::file_size(State()), 1u << 20) << "as of any machine that is off";
  }

  SleepingProcess process_;
  bool fails_ = false, hangs_up_ = false, capturing_ = false, restored_ = false;
  worker::State state_ = worker::RUNNING;
  int captures_ = 0, asked_ = 0, resumes_ = 0;
  SlowMerge merge_;
  std::optional<Result<void>> result_;
};

TEST_F(InventorySaveTest, AMergeStandsAsideUntilTheMachineIsSaved) {
  merge_.working = true;
  Save();
  for (int i = 0; i < 5; ++i) loop_->RunOnce(1);
  EXPECT_EQ(captures_, 0) << "a disk of it is being merged";
  merge_.StandAside();
  Turn([this] { return result_.has_value(); });
  EXPECT_TRUE(result_->ok());
  EXPECT_EQ(captures_, 1);
  EXPECT_EQ(merge_.suspended, 0) << "the merge goes on";
  EXPECT_EQ(inventory_->Get(kId)->status.state(), worker::SAVED);
  EXPECT_TRUE(inventory_->Get(kId)->config.saved());
}

TEST_F(InventorySaveTest, AMergeGoesOnAfterASaveThatFails) {
  fails_ = true;
  Save();
  Turn([this] { return result_.has_value(); });
  EXPECT_EQ(result_->error().code(), Code::kResourceExhausted);
  EXPECT_EQ(merge_.suspended, 0);
  EXPECT_TRUE(inventory_->Reserve(kId, "nobody has it any more").ok());
}

/// The disk of the configurations is full: what was saved is not thrown away, and counts when there
/// is room.
TEST_F(InventorySaveTest, ASaveThatCannotBeNotedIsNotedLater) {
  const std::string config = folder_ + "/state/Virtual Machines/" + kId + ".vmcx";
  state_ = worker::SAVED;
  Open();
  std::filesystem::remove(config);
  std::filesystem::create_directories(config + "/in the way");
  Turn([this] { return inventory_->Get(kId)->status.state() == worker::SAVED; });
  std::optional<Result<void>> off;
  inventory_->TurnOff(kId, [&off](const Result<void>& result) { off = result; });
  ASSERT_TRUE(off.has_value());
  EXPECT_NE(off->error().ToString().find("make room"), std::string::npos);
  std::filesystem::remove_all(config);
  Turn([this] { return inventory_->Get(kId)->config.saved(); });
  Turn([this] { return inventory_->Get(kId)->status.pid() == 0; });
}

TEST_F(InventorySaveTest, NothingElseChangesAMachineThatIsBeingSaved) {
  merge_.working = true;
  Save();
  config::Disk disk;
  disk.set_path("/disk.vhdx");
  std::optional<Result<void>> attached;
  inventory_->AttachDisk(kId, disk, [&](const Result<void>& result) { attached = result; });
  ASSERT_TRUE(attached.has_value());
  EXPECT_EQ(attached->error().code(), Code::kFailedPrecondition);
  merge_.StandAside();
  Turn([this] { return result_.has_value(); });
  EXPECT_TRUE(result_->ok());
}

TEST_F(InventorySaveTest, AWorkerThatIsKilledInASaveLeavesNothingOfIt) {
  WriteState();
  process_.Kill();
  Turn([this] { return inventory_->Get(kId)->status.state() == worker::OFF; });
  ExpectTidy();
}

/// Of a start that fails its reason is told, though the machine is Saved as before.
TEST_F(InventorySaveTest, ASavedMachineSaysWhyItDidNotStart) {
  vm_.set_saved(true);
  for (const bool fails : {true, false}) {
    inventory_.reset();
    ASSERT_TRUE(Store()->Save(vm_).ok());
    SleepingProcess process;
    StartWorker([this, &process](const worker::Request&) {
      worker::Reply reply;
      Greet(vm_, worker::STARTING, process.pid(), &reply);
      return reply;
    });
    Open();
    Turn([this, &process] { return inventory_->Get(kId)->status.pid() == process.pid(); });
    worker::ExitRecord exit;
    exit.set_code(fails ? static_cast<uint32_t>(Code::kDataLoss) : 0);
    exit.set_reason(fails ? "it is damaged" : "turned off");
    std::ofstream(folder_ + "/run/" + kId + "/exit") << exit.SerializeAsString();
    process.Kill();
    Turn([this] { return inventory_->Get(kId)->status.state() == worker::SAVED; });
    EXPECT_EQ(inventory_->Get(kId)->status.reason(), fails ? "it is damaged" : "saved");
  }
}

TEST_F(InventorySaveTest, NorDoesOneThatIsKilledWithVmmd) {
  inventory_.reset();
  worker_.reset();
  std::filesystem::remove(folder_ + "/run/" + kId + "/worker.sock");
  WriteState();
  Open();
  EXPECT_EQ(std::filesystem::file_size(State()), 1u << 20) << "none ran here: it may be anybody's";
  std::ofstream(folder_ + "/run/" + kId + "/lock") << "";
  Open();
  EXPECT_EQ(inventory_->Get(kId)->status.state(), worker::OFF);
  ExpectTidy();
}

/// vmmd was killed between its guest's going on and this.
TEST_F(InventorySaveTest, WhatAnEarlierServiceHasRestoredIsTidied) {
  WriteState();
  Open();
  Turn([this] { return std::filesystem::file_size(State()) < 1u << 20; });
  ExpectTidy();
}

TEST_F(InventorySaveTest, WhatAWorkerIsSavingIsNotTidied) {
  capturing_ = true;
  WriteState();
  Open();
  Turn([this] { return inventory_->Get(kId)->status.capturing(); });
  for (int i = 0; i < 15; ++i) loop_->RunOnce(10);
  EXPECT_EQ(std::filesystem::file_size(State()), 1u << 20);
}

TEST_F(InventorySaveTest, AWorkerThatEndsBeforeItSaysWhoItIsDoesNotRun) {
  StartWorker([](const worker::Request&) { return std::nullopt; });
  std::ofstream(folder_ + "/run/" + kId + "/lock") << "";
  Open();
  EXPECT_EQ(inventory_->Get(kId)->status.state(), worker::RUNNING);
  WriteState();
  worker_.reset();
  Turn([this] { return inventory_->Get(kId)->status.state() == worker::OFF; });
  EXPECT_NE(inventory_->Get(kId)->status.reason(), "");
  ExpectTidy();
}

TEST_F(InventorySaveTest, ASavedStateThatCountsStays) {
  Save();
  Turn([this] { return result_.has_value(); });
  ASSERT_TRUE(inventory_->Get(kId)->config.saved());
  WriteState();
  std::ofstream(folder_ + "/run/" + kId + "/lock") << "";
  Open();
  EXPECT_FALSE(std::filesystem::exists(State() + ".new"));
  EXPECT_EQ(std::filesystem::file_size(State()), 1u << 20);
  ASSERT_TRUE(inventory_->DiscardSaved(kId).ok());
  ExpectTidy();
}

/// Its saved state counts no more: it goes on, or it is lost.
TEST_F(InventorySaveTest, ARestoredMachineWhoseWorkerHangsUpGoesOn) {
  state_ = worker::PAUSED;
  restored_ = true;
  inventory_.reset();
  vm_.set_saved(true);
  ASSERT_TRUE(Store()->Save(vm_).ok());
  Open();
  Turn([this] { return state_ == worker::RUNNING; });
  EXPECT_EQ(resumes_, 2);
  EXPECT_FALSE(inventory_->Get(kId)->config.saved());
}

TEST_F(InventorySaveTest, ASaveIsAJobThatAnotherVmmdFinds) {
  auto jobs = Jobs::Open(folder_ + "/jobs", loop_->clock()).value();
  auto states = std::make_unique<StateJobs>(*loop_, *inventory_, *jobs);
  const auto state_of = [&](const std::string& id) { return jobs->Get(id)->state(); };
  const auto ended = [&](const std::string& id) { return state_of(id) != config::JOB_RUNNING; };

  fails_ = true;
  const std::string failed = states->Save(kId, true, "first")->id();
  Turn([&] { return ended(failed); });
  EXPECT_EQ(jobs->Get(failed)->error_code(), static_cast<uint32_t>(Code::kResourceExhausted));
  EXPECT_EQ(states->Save(kId, true, "first")->id(), failed) << "the same request";

  // One that was being made when vmmd ended, of which the worker knows nothing.
  merge_.working = true;
  const std::string lost = states->Save(kId, true, "second")->id();
  EXPECT_FALSE(ended(lost));
  const auto restart = [&] {
    states.reset();
    Open();
    jobs = Jobs::Open(folder_ + "/jobs", loop_->clock()).value();
    states = std::make_unique<StateJobs>(*loop_, *inventory_, *jobs);
  };
  restart();
  Turn([&] { return ended(lost); });
  EXPECT_EQ(state_of(lost), config::JOB_FAILED);

  merge_.working = fails_ = false;
  Turn([this] { return inventory_->Get(kId)->status.pid() != 0; });
  const std::string done = states->Save(kId, true, "third")->id();
  Turn([&] { return ended(done); });
  EXPECT_EQ(state_of(done), config::JOB_DONE) << jobs->Get(done)->error();
  EXPECT_TRUE(inventory_->Get(kId)->config.saved());
}

/// Who waits for the job may start the machine again.
TEST_F(InventorySaveTest, ASaveThatIsWaitedForEndsWithItsWorker) {
  auto jobs = Jobs::Open(folder_ + "/jobs", loop_->clock()).value();
  StateJobs states(*loop_, *inventory_, *jobs);
  hangs_up_ = true;
  const std::string job = states.Save(kId, true, "")->id();
  Turn([this] { return asked_ > 1; });
  state_ = worker::SAVED;
  capturing_ = false;
  Turn([this, asked = asked_] { return asked_ > asked + 1; });
  EXPECT_EQ(jobs->Get(job)->state(), config::JOB_RUNNING) << "the worker is there yet";
  worker_->HangUp();  // the next one hears it
  Turn([&] { return jobs->Get(job)->state() != config::JOB_RUNNING; });
  EXPECT_EQ(jobs->Get(job)->state(), config::JOB_DONE) << jobs->Get(job)->error();
  EXPECT_EQ(inventory_->Get(kId)->status.pid(), 0u);
}

TEST_F(InventorySaveTest, ASaveWhoseWorkerHangsUpIsWaitedFor) {
  auto jobs = Jobs::Open(folder_ + "/jobs", loop_->clock()).value();
  StateJobs states(*loop_, *inventory_, *jobs);
  hangs_up_ = true;
  const std::string job = states.Save(kId, true, "")->id();
  Turn([this] { return asked_ > 1; });
  EXPECT_EQ(jobs->Get(job)->state(), config::JOB_RUNNING);
  EXPECT_EQ(inventory_->Reserve(kId, "another").error().code(), Code::kFailedPrecondition);
  // It has gone on, and hangs up again before it says so.
  state_ = worker::SAVED;
  capturing_ = false;
  worker_->HangUp();
  Turn([&] { return jobs->Get(job)->state() != config::JOB_RUNNING; });
  EXPECT_EQ(jobs->Get(job)->state(), config::JOB_DONE) << jobs->Get(job)->error();
  EXPECT_TRUE(inventory_->Get(kId)->config.saved());
}

}  // namespace
}  // namespace kvmbus::vmm
