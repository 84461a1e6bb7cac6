// SPDX-License-Identifier: Apache-2.0
// The manager's part of changes of disks in use, with a worker that answers as the test tells it:
// what the stored configuration says at each moment.
#include "vmm/manager/disk_operations.h"

#include <chrono>
#include <fstream>
#include <optional>
#include <thread>

#include "vmm/manager/manager_test_host.h"

namespace kvmbus::vmm {
namespace {

using tests::FakeWorker;

class DiskOperationsTest : public ManagerTest {
 protected:
  DiskOperationsTest() {
    config::Disk* disk = vm_.add_disks();
    disk->set_path(Path("base.vhdx"));
    disk->set_lun(3);
  }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  void Touch(const std::string& name) { std::ofstream(Path(name)) << "x"; }
  /// As it is on disk, where a new vmmd would read it.
  config::Disk Stored() { return Store()->List().value().vms.at(0).disks(0); }

  void Open() {
    ASSERT_TRUE(Store()->Save(vm_).ok());
    OpenInventory();
    operations_ = std::make_unique<DiskOperations>(*inventory_, DiskOperations::For::kUser);
  }
  /// With a machine that runs, whose disk has the file `uses` as a layer.
  void OpenWithWorker(FakeWorker::Answer answer) {
    StartWorker([this, answer](const worker::Request& request) -> std::optional<worker::Reply> {
      worker::Reply reply;
      if (request.has_hello()) {
        Greet(running_, worker::RUNNING, static_cast<uint32_t>(::getpid()), &reply);
        reply.mutable_hello()->set_names_children(names_children_);
        greeted_ = true;
        return reply;
      }
      if (request.has_find_disk()) {
        const bool known = request.find_disk().path() == Path(uses_);
        if (known) {
          reply.mutable_disk_place()->set_lun(3);
          reply.mutable_disk_place()->set_layer(layer_);
          reply.mutable_disk_place()->set_path(Path("base.vhdx"));
        } else {
          reply.mutable_failure()->set_code(static_cast<uint32_t>(Code::kNotFound));
        }
        return reply;
      }
      return answer(request);
    });
    Open();
    Turn([this] { return greeted_; });
    for (int i = 0; i < 5; ++i) loop_->RunOnce(1);
  }
  /// Its result.
  Result<void> Await(const std::function<void(DiskOperations::Done)>& start) {
    std::optional<Result<void>> result;
    start([&result](const Result<void>& done) { result = done; });
    Turn([&result] { return result.has_value(); });
    return result ? *result : Error(Code::kInternal, "no answer");
  }
  Result<void> CreateChild(const std::string& parent, const std::string& child) {
    return Await([&](DiskOperations::Done done) {
      operations_->CreateChild(Path(parent), Path(child), std::move(done));
    });
  }
  static worker::Reply Failed(Code code) {
    worker::Reply reply;
    reply.mutable_failure()->set_code(static_cast<uint32_t>(code));
    reply.mutable_failure()->set_message("no");
    return reply;
  }

  std::string uses_ = "base.vhdx";
  uint32_t layer_ = 0;
  config::Vm running_;
  bool greeted_ = false, names_children_ = true;
  std::unique_ptr<DiskOperations> operations_;
};

TEST_F(DiskOperationsTest, AChildIsNamedBeforeItIsMadeAndIsTheDiskOnceItIs) {
  running_ = vm_;
  std::string next_then;
  OpenWithWorker([&](const worker::Request& request) {
    EXPECT_EQ(request.create_child().path(), Path("child.vhdx"));
    EXPECT_EQ(request.create_child().lun(), 3u);
    next_then = Stored().next();
    EXPECT_EQ(Stored().path(), Path("base.vhdx"));
    Touch("child.vhdx");
    return worker::Reply();
  });
  const auto made = CreateChild("base.vhdx", "child.vhdx");
  ASSERT_TRUE(made.ok()) << made.error().ToString();
  EXPECT_EQ(next_then, Path("child.vhdx"));
  EXPECT_EQ(Stored().path(), Path("child.vhdx"));
  EXPECT_EQ(Stored().next(), "");
}

TEST_F(DiskOperationsTest, AChildThatTheWorkerRefusesIsForgotten) {
  running_ = vm_;
  OpenWithWorker([&](const worker::Request&) { return Failed(Code::kResourceExhausted); });
  EXPECT_EQ(CreateChild("base.vhdx", "child.vhdx").error().code(), Code::kResourceExhausted);
  EXPECT_EQ(Stored().path(), Path("base.vhdx"));
  EXPECT_EQ(Stored().next(), "");
  Touch("there.vhdx");
  EXPECT_EQ(CreateChild("base.vhdx", "there.vhdx").error().code(), Code::kAlreadyExists);
  EXPECT_EQ(CreateChild("stranger.vhdx", "child.vhdx").error().code(), Code::kNotFound);
  layer_ = 1;
  EXPECT_EQ(CreateChild("base.vhdx", "child.vhdx").error().code(), Code::kFailedPrecondition);
  EXPECT_EQ(Stored().next(), "");
}

TEST_F(DiskOperationsTest, AWorkerThatDiesLeavesTheNameAndTheNextStartSees) {
  running_ = vm_;
  OpenWithWorker([&](const worker::Request&) { return std::optional<worker::Reply>(); });
  EXPECT_EQ(CreateChild("base.vhdx", "child.vhdx").error().code(), Code::kUnavailable);
  EXPECT_EQ(Stored().path(), Path("base.vhdx"));
  EXPECT_EQ(Stored().next(), Path("child.vhdx"));
}

TEST_F(DiskOperationsTest, AStartTakesTheChildIfItWasMade) {
  vm_.mutable_disks(0)->set_next(Path("child.vhdx"));
  Open();
  inventory_->Start(kId, [](const Result<void>&) {});
  EXPECT_EQ(Stored().path(), Path("base.vhdx"));
  EXPECT_EQ(Stored().next(), "");
  inventory_.reset();
  Touch("child.vhdx");
  Open();
  inventory_->Start(kId, [](const Result<void>&) {});
  EXPECT_EQ(Stored().path(), Path("child.vhdx"));
  EXPECT_EQ(Stored().next(), "");
}

TEST_F(DiskOperationsTest, AWorkerThatHasGoneOnIsBelieved) {
  vm_.mutable_disks(0)->set_next(Path("child.vhdx"));
  running_ = vm_;
  running_.mutable_disks(0)->set_path(Path("child.vhdx"));
  running_.mutable_disks(0)->clear_next();
  OpenWithWorker([](const worker::Request&) { return worker::Reply(); });
  EXPECT_EQ(Stored().path(), Path("child.vhdx"));
  EXPECT_EQ(Stored().next(), "");
}

/// Another vmmd had asked for it, or this one by a link that is lost.
TEST_F(DiskOperationsTest, AChildThatNobodyWaitsForIsFollowed) {
  vm_.mutable_disks(0)->set_next(Path("child.vhdx"));
  for (const bool made : {false, true}) {
    running_ = vm_;  // at work on it
    greeted_ = false;
    OpenWithWorker([](const worker::Request&) { return worker::Reply(); });
    EXPECT_EQ(Stored().next(), Path("child.vhdx"));
    running_.mutable_disks(0)->clear_next();
    if (made) running_.mutable_disks(0)->set_path(Path("child.vhdx"));
    Turn([this] { return Stored().next().empty(); });
    EXPECT_EQ(Stored().next(), "");
    EXPECT_EQ(Stored().path(), made ? Path("child.vhdx") : Path("base.vhdx"));
    inventory_.reset();
  }
}

/// The next start sees whether it has made the child.
TEST_F(DiskOperationsTest, AWorkerOfAnEarlierVersionDoesNotSayThatAChildFailed) {
  vm_.mutable_disks(0)->set_next(Path("child.vhdx"));
  running_ = vm_;
  running_.mutable_disks(0)->clear_next();
  names_children_ = false;
  OpenWithWorker([](const worker::Request&) { return worker::Reply(); });
  EXPECT_EQ(Stored().next(), Path("child.vhdx"));
}

/// While another disk's child is followed: what the worker had said before it was asked.
TEST_F(DiskOperationsTest, AChildThatIsAskedForIsNotForgottenForAnEarlierAnswer) {
  config::Disk* followed = vm_.add_disks();
  followed->set_path(Path("other.vhdx"));
  followed->set_next(Path("others-child.vhdx"));
  running_ = vm_;
  OpenWithWorker([](const worker::Request&) { return worker::Reply(); });
  std::optional<Result<void>> result;
  operations_->CreateChild(Path("base.vhdx"), Path("child.vhdx"),
                           [&](const Result<void>& done) { result = done; });
  // The question where the disk is lies before the worker; the next hello is behind it, and before
  // the request.
  std::this_thread::sleep_for(std::chrono::milliseconds(600));
  greeted_ = false;
  Turn([&] { return result.has_value(); });
  EXPECT_TRUE(greeted_) << "no hello came between them";
  EXPECT_TRUE(result->ok()) << result->error().ToString();
  EXPECT_EQ(Stored().path(), Path("child.vhdx"));
}

TEST_F(DiskOperationsTest, AMergedTopGivesUpItsName) {
  running_ = vm_;
  Touch("below.vhdx");
  OpenWithWorker([&](const worker::Request& request) {
    EXPECT_TRUE(request.has_merge_disk());
    std::filesystem::create_symlink("below.vhdx", Path("base.vhdx"));
    worker::Reply reply;
    reply.mutable_disk_place()->set_path(Path("below.vhdx"));
    return reply;
  });
  const auto merged = Await(
      [&](DiskOperations::Done done) { operations_->Merge(Path("base.vhdx"), std::move(done)); });
  ASSERT_TRUE(merged.ok()) << merged.error().ToString();
  EXPECT_EQ(Stored().path(), Path("below.vhdx"));
  EXPECT_FALSE(std::filesystem::is_symlink(Path("base.vhdx")));
  EXPECT_TRUE(std::filesystem::exists(Path("below.vhdx")));
}

TEST_F(DiskOperationsTest, NobodyElseSetsNext) {
  Open();
  config::Vm other = vm_;
  other.clear_id();
  other.set_name("two");
  other.mutable_disks(0)->set_next(Path("child.vhdx"));
  EXPECT_EQ(inventory_->Create(other).error().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace kvmbus::vmm
