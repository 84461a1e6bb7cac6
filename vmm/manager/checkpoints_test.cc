// SPDX-License-Identifier: Apache-2.0
// Checkpoints and saves of a machine that runs: what a new vmmd does about those that an earlier
// one had begun, what is done about workers that do not answer, and how jobs are cancelled.
#include "vmm/manager/checkpoints.h"

#include <sys/epoll.h>

#include <fstream>
#include <map>
#include <optional>
#include <utility>

#include "vmm/event/framed_connection.h"
#include "vmm/manager/manager_test_host.h"
#include "vmm/manager/state_jobs.h"
#include "vmm/os/unix_socket.h"

namespace kvmbus::vmm {
namespace {

constexpr int kTurns = 1000;

/// Images that stand on nothing; counts who asks.
class FakeFiles final : public DiskFiles {
 public:
  Result<void> CreateChild(const std::string&, const std::string&) override { return {}; }
  Result<std::string> ParentOf(const std::string&) override {
    ++asked;
    blocked.wait(true);
    return std::string();
  }
  Result<void> Merge(const std::string&, const Progress&) override { return {}; }
  Result<void> Reparent(const std::string&, const std::string&) override { return {}; }
  Result<void> Copy(const std::string&, const std::string&, const Progress&) override { return {}; }
  Result<void> Flatten(const std::string&, const std::string&, const Progress&) override {
    return {};
  }

  void Unblock() {
    blocked = false;
    blocked.notify_all();
  }

  std::atomic<int> asked{0};
  std::atomic<bool> blocked{false};  ///< who asks waits
};

/// A worker that may answer a request later.
class SlowWorker {
 public:
  using Answer = std::function<std::optional<worker::Reply>(const worker::Request&)>;
  using CallCase = worker::Request::CallCase;

  /// `answer`: nullopt, and the request waits for Finish.
  SlowWorker(Loop& loop, const std::string& path, Answer answer)
      : loop_(loop), listener_(ListenUnix(path).value()), answer_(std::move(answer)) {
    (void)loop_.Watch(listener_.get(), EPOLLIN, [this](uint32_t) { Accept(); });
  }
  ~SlowWorker() { loop_.Unwatch(listener_.get()); }
  bool IsWaiting(CallCase call) const { return waiting_.contains(call); }
  /// Whether a request of the kind was waiting.
  bool Finish(CallCase call, Code code) {
    const auto waiting = waiting_.extract(call);
    if (!waiting) return false;
    worker::Reply reply;
    reply.mutable_failure()->set_code(static_cast<uint32_t>(code));
    Send(waiting.mapped(), std::move(reply));
    return true;
  }

 private:
  void Accept() {
    FramedConnection::Options options;
    options.frame_limit = 1u << 20;
    FramedConnection::Callbacks callbacks;
    callbacks.frame = [this](std::string_view frame) { OnFrame(frame); };
    callbacks.closed = [](const Error&) {};
    client_ =
        FramedConnection::Open(loop_, AcceptUnix(listener_.get()), options, callbacks).value();
  }
  void OnFrame(std::string_view frame) {
    worker::Message message;
    ASSERT_TRUE(message.ParseFromArray(frame.data(), static_cast<int>(frame.size())));
    const worker::Request& request = message.request();
    if (auto reply = answer_(request))
      Send(request.id(), std::move(*reply));
    else
      waiting_[request.call_case()] = request.id();
  }
  void Send(uint64_t id, worker::Reply reply) {
    worker::Message message;
    reply.set_id(id);
    *message.mutable_reply() = std::move(reply);
    (void)client_->Send(message.SerializeAsString());
  }

  Loop& loop_;
  Fd listener_;
  Answer answer_;
  std::unique_ptr<FramedConnection> client_;
  std::map<CallCase, uint64_t> waiting_;
};

/// A merge that stands aside when the test says so.
class SlowMerge final : public ImageWorker {
 public:
  void Suspend(const std::string&, std::function<void()> idle) override { idle_ = std::move(idle); }
  void Resume(const std::string&) override {}
  void StandAside() { std::exchange(idle_, nullptr)(); }

 private:
  std::function<void()> idle_;
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

  std::optional<worker::Reply> Answer(const worker::Request& request) {
    worker::Reply reply;
    if (request.has_hello()) {
      Greet(vm_, worker::PAUSED, process_.pid(), &reply);
    } else if (request.has_status()) {
      ++asked_;
      if (silences_ > 0 && silences_-- > 0) return Failed(Code::kDeadlineExceeded);
      reply.mutable_status()->set_state(worker::PAUSED);
      reply.mutable_status()->set_capturing(capturing_);
      reply.mutable_status()->set_capture_total(counts_ ? 100 : 0);
    } else if (request.has_capture()) {
      capture_ = request.capture();
      return answer_capture_();
    } else if (request.has_cancel_capture()) {
      ++cancels_;
    }
    return reply;
  }
  static worker::Reply Failed(Code code) {
    worker::Reply reply;
    reply.mutable_failure()->set_code(static_cast<uint32_t>(code));
    return reply;
  }

  /// A job of an earlier vmmd's, which a new one finds: a checkpoint of the disk.
  void Restart(bool production) {
    config::Job job;
    job.set_kind(config::CREATE_CHECKPOINT);
    job.set_vm(kId);
    job.add_new_files(child_);
    config::Vm* next = job.mutable_change()->add_store();
    *next = vm_;
    next->mutable_disks(0)->set_path(child_);
    next->set_parent_checkpoint(kCheckpoint);
    config::Vm* checkpoint = job.mutable_change()->add_store();
    *checkpoint = vm_;
    checkpoint->mutable_checkpoint()->set_id(kCheckpoint);
    checkpoint->mutable_checkpoint()->set_name("one");
    checkpoint->mutable_checkpoint()->set_production(production);
    job_ = Jobs::Open(folder_ + "/jobs", loop_->clock()).value()->Begin(job).value().id();
    OpenCheckpoints();
  }
  void OpenCheckpoints() {
    jobs_ = Jobs::Open(folder_ + "/jobs", loop_->clock()).value();
    checkpoints_ = std::make_unique<Checkpoints>(*loop_, *inventory_, *jobs_, files_);
  }
  /// Of a machine whose worker has said what it is.
  void Create(std::optional<Checkpoints::Kind> kind) {
    Turn([this] { return inventory_->Get(kId)->status.pid() == process_.pid(); });
    Checkpoints::CreateOptions options;
    options.vm = kId;
    options.kind = kind;
    const auto begun = checkpoints_->Create(options, nullptr);
    ASSERT_TRUE(begun.ok()) << begun.error().ToString();
    job_ = begun->id();
  }
  config::JobState JobState() const { return jobs_->Get(job_)->state(); }
  void AwaitJob() {
    Turn([this] { return JobState() != config::JOB_RUNNING; }, kTurns);
  }
  /// What the worker makes is there, and the job takes it.
  void EndCaptureWhole() {
    std::ofstream(child_) << "x";
    capturing_ = false;
    AwaitJob();
    EXPECT_EQ(JobState(), config::JOB_DONE) << jobs_->Get(job_)->error();
    EXPECT_EQ(Disk(), child_);
  }
  void AwaitAsked(int more) {
    Turn([this, enough = asked_ + more] { return asked_ >= enough; }, kTurns);
  }
  std::string Disk() const { return inventory_->Get(kId)->config.disks(0).path(); }

  static constexpr const char* kCheckpoint = "AAAAAAAA-2222-3333-4444-555555555555";
  const std::string child_ = folder_ + "/child.avhdx";
  SleepingProcess process_;
  bool capturing_ = true, counts_ = false;
  int silences_ = 0;  ///< so many times the next status is not answered
  std::function<std::optional<worker::Reply>()> answer_capture_;
  worker::CaptureRequest capture_;
  int asked_ = 0, cancels_ = 0;
  std::string job_;
  FakeFiles files_;
  std::unique_ptr<Jobs> jobs_;
  std::unique_ptr<Checkpoints> checkpoints_;
};

TEST_F(CheckpointsTest, OneThatAWorkerStillMakesIsWaitedForAndNothingIsMergedMeanwhile) {
  counts_ = true;
  Restart(false);
  // The machine is paused, and known to be from the second time on.
  AwaitAsked(3);
  EXPECT_EQ(JobState(), config::JOB_RUNNING);
  EXPECT_EQ(files_.asked, 0) << "a disk of a machine that is being captured";
  EXPECT_FALSE(inventory_->Reserve(kId, "by somebody else").ok());
  capturing_ = counts_ = false;
  AwaitJob();
  EXPECT_EQ(JobState(), config::JOB_FAILED) << "it was not whole";
  EXPECT_EQ(Disk(), folder_ + "/disk.vhdx");
  Turn([this] { return files_.asked > 0; }, kTurns);
}

/// One without memory, or of a machine whose own memory is still being loaded.
TEST_F(CheckpointsTest, OneThatHasNothingToCountIsWaitedForToo) {
  Restart(false);
  AwaitAsked(3);
  ASSERT_EQ(JobState(), config::JOB_RUNNING);
  EndCaptureWhole();
  EXPECT_TRUE(inventory_->Checkpoints(kId).contains(kCheckpoint));
}

TEST_F(CheckpointsTest, AWorkerThatDoesNotAnswerIsAskedAgain) {
  silences_ = 1;
  Restart(false);
  AwaitAsked(2);
  ASSERT_EQ(JobState(), config::JOB_RUNNING);
  EndCaptureWhole();
}

TEST_F(CheckpointsTest, OneThatHasEndedIsNot) {
  silences_ = kTurns;
  Restart(false);
  AwaitAsked(2);
  process_.Kill();
  worker_->HangUp();
  AwaitJob();
  EXPECT_EQ(JobState(), config::JOB_FAILED);
  EXPECT_EQ(Disk(), folder_ + "/disk.vhdx");
}

TEST_F(CheckpointsTest, OneThatAnEarlierServiceBeganCanBeCancelled) {
  Restart(false);
  AwaitAsked(1);
  EXPECT_TRUE(jobs_->Cancel(job_).ok());
  Turn([this] { return cancels_ > 0; });
  EXPECT_EQ(JobState(), config::JOB_RUNNING) << "the worker has the word";
  capturing_ = false;
  AwaitJob();
  EXPECT_EQ(JobState(), config::JOB_FAILED);
}

/// It may have thawed before its disks were taken, and nobody has asked.
TEST_F(CheckpointsTest, WhetherTheGuestWasFrozenIsNotKnownAfterARestart) {
  Restart(true);
  std::ofstream(child_) << "x";
  capturing_ = false;
  AwaitJob();
  ASSERT_EQ(JobState(), config::JOB_DONE) << jobs_->Get(job_)->error();
  EXPECT_FALSE(inventory_->Checkpoints(kId).at(kCheckpoint).checkpoint().production());
}

TEST_F(CheckpointsTest, WhatAWorkerMakesThatHasHungUpIsWaitedFor) {
  OpenCheckpoints();
  answer_capture_ = [] { return std::nullopt; };
  Create(Checkpoints::Kind::kDisks);
  Turn([this] { return capture_.children_size() == 1; });
  EXPECT_TRUE(capture_.pause()) << "nothing else stops the guest's writes";
  for (int i = 0; i < 50; ++i) loop_->RunOnce(10);
  ASSERT_EQ(JobState(), config::JOB_RUNNING);
  std::ofstream(capture_.children(0).path()) << "x";
  process_.Kill();
  AwaitJob();
  EXPECT_EQ(JobState(), config::JOB_FAILED);
  EXPECT_EQ(Disk(), capture_.children(0).path()) << "it goes on in that";
}

TEST_F(CheckpointsTest, WhatIsNotAnsweredIsCancelledBeforeItIsUndone) {
  OpenCheckpoints();
  answer_capture_ = [] { return Failed(Code::kDeadlineExceeded); };
  Create(Checkpoints::Kind::kDisks);
  Turn([this] { return cancels_ > 1; });
  ASSERT_EQ(JobState(), config::JOB_RUNNING);
  std::ofstream(capture_.children(0).path()) << "x";  // too late
  capturing_ = false;
  AwaitJob();
  EXPECT_EQ(JobState(), config::JOB_FAILED);
  EXPECT_EQ(Disk(), capture_.children(0).path());
}

TEST_F(CheckpointsTest, OneThatIsCancelledWhileAMergeStandsAsideIsNotBegun) {
  files_.blocked = true;
  OpenCheckpoints();
  Turn([this] { return files_.asked > 0; });
  Create(Checkpoints::Kind::kDisks);
  EXPECT_TRUE(jobs_->Cancel(job_).ok());
  files_.Unblock();
  AwaitJob();
  EXPECT_EQ(JobState(), config::JOB_CANCELLED);
  EXPECT_EQ(capture_.children_size(), 0);
  EXPECT_TRUE(inventory_->Reserve(kId, "nobody has it any more").ok());
}

class CancelTest : public CheckpointsTest {
 protected:
  void SetUp() override {
    CheckpointsTest::SetUp();
    inventory_.reset();
    worker_.reset();
    slow_ = std::make_unique<SlowWorker>(
        *loop_, folder_ + "/run/" + kId + "/worker.sock",
        [this](const worker::Request& request) { return AnswerSlowly(request); });
    OpenInventory();
    Turn([this] { return inventory_->Get(kId)->status.pid() == process_.pid(); });
  }
  /// As a worker does that is told to stop freezing, or to stop capturing.
  std::optional<worker::Reply> AnswerSlowly(const worker::Request& request) {
    if (request.has_freeze_guest() || request.has_capture()) return std::nullopt;
    if (request.has_thaw_guest()) {
      (void)slow_->Finish(worker::Request::kFreezeGuest, Code::kCancelled);
      return Failed(Code::kFailedPrecondition);
    }
    if (request.has_cancel_capture())
      (void)slow_->Finish(worker::Request::kCapture, Code::kCancelled);
    return Answer(request);
  }

  std::unique_ptr<SlowWorker> slow_;
};

/// Nor is it a standard one in place of a production one.
TEST_F(CancelTest, WhileTheGuestFreezesNothingComesOfACancelledCheckpoint) {
  vm_.set_checkpoint_policy(config::PRODUCTION);
  ASSERT_TRUE(inventory_->Store(vm_).ok());
  OpenCheckpoints();
  Create(std::nullopt);
  Turn([this] { return slow_->IsWaiting(worker::Request::kFreezeGuest); });
  ASSERT_TRUE(jobs_->Cancel(job_).ok());
  AwaitJob();
  EXPECT_EQ(JobState(), config::JOB_CANCELLED);
  EXPECT_FALSE(slow_->IsWaiting(worker::Request::kCapture));
  EXPECT_EQ(Disk(), folder_ + "/disk.vhdx");
  EXPECT_EQ(inventory_->Get(kId)->config.disks(0).next(), "");
}

TEST_F(CancelTest, ASaveThatWaitsForAMergeIsCancelledWhenItBegins) {
  SlowMerge merge;
  inventory_->SetImageWorker(&merge);
  jobs_ = Jobs::Open(folder_ + "/jobs", loop_->clock()).value();
  StateJobs states(*loop_, *inventory_, *jobs_);
  job_ = states.Save(kId, false, "")->id();
  ASSERT_TRUE(jobs_->Cancel(job_).ok());
  Turn([this] { return cancels_ > 0; });
  EXPECT_EQ(JobState(), config::JOB_RUNNING) << "the merge stands aside for it";
  merge.StandAside();
  AwaitJob();
  EXPECT_EQ(JobState(), config::JOB_CANCELLED);
  inventory_->SetImageWorker(nullptr);
}

}  // namespace
}  // namespace kvmbus::vmm
