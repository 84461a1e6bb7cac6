// SPDX-License-Identifier: Apache-2.0
// Captures of a machine without a guest: in which state each end of one leaves it.
#include "cmd/vmm/state_capture.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include "tests/fakes/fake_vm.h"
#include "vmm/os/log.h"

namespace kvmbus::cmd {
namespace {

using vmm::Code;
using vmm::MachineState;
using vmm::Result;

/// A machine without devices, whose disks do as the test says.
class FakeSource final : public CaptureSource {
 public:
  explicit FakeSource(vmm::Loop& loop) {
    const vmm::MemoryRange ram[] = {{0, 4 << 20}};
    memory = vmm::GuestMemory::Create(ram).value();
    const std::string content(vmm::kPageSize, 'x');
    KVMBUS_ASSERT(memory->Write(0x5000, content.data(), content.size()));
    auto vm = std::make_unique<tests::FakeVm>(1);
    tracker = &vm->tracker;
    machine_ =
        std::make_unique<vmm::Machine>(loop, *memory, std::move(vm), vmm::Machine::Callbacks());
    machine_->SetBootLoader([]() -> Result<vmm::BootState> { return vmm::BootState(); });
    KVMBUS_ASSERT(machine_->PowerOn().ok());
  }
  ~FakeSource() override { (void)machine_->TurnOff(Code::kOk, "over"); }

  vmm::Machine& machine() override { return *machine_; }
  const std::string& fdt() const override { return fdt_; }
  void FinishLoading() override {}
  Result<MakeChild> ChildMaker(uint32_t, uint32_t lun, const std::string&) override {
    return MakeChild([this, lun] { return on_make ? on_make(lun) : Result<void>(); });
  }
  Result<void> SwitchToChild(uint32_t, uint32_t lun) override {
    switched.emplace_back(lun, machine_->state());
    return on_switch ? on_switch(lun) : Result<void>();
  }
  Result<void> FlushDisks() override { return on_flush ? on_flush() : Result<void>(); }

  std::unique_ptr<vmm::GuestMemory> memory;
  tests::FakeDirtyTracker* tracker = nullptr;
  std::function<Result<void>()> on_flush;
  std::function<Result<void>(uint32_t lun)> on_make, on_switch;
  std::vector<std::pair<uint32_t, MachineState>> switched;  ///< disks, and what the machine was

 private:
  const std::string fdt_ = "fdt";
  std::unique_ptr<vmm::Machine> machine_;
};

class StateCaptureTest : public testing::Test {
 protected:
  StateCaptureTest() {
    spdlog::set_level(spdlog::level::off);  // every change of state is a line
    char folder[] = "/tmp/state-capture-test-XXXXXX";
    folder_ = ::mkdtemp(folder);
    request_.set_state_path(folder_ + "/one.vmrs");
    request_.set_stop(true);
    source_ = std::make_unique<FakeSource>(*loop_);
  }
  ~StateCaptureTest() override {
    capture_.reset();
    source_.reset();
    std::filesystem::remove_all(folder_);
  }

  void Begin() {
    result_.reset();
    capture_ = std::make_unique<StateCapture>(
        *loop_, *source_, request_,
        [this](const Result<worker::CaptureReply>& result) { result_ = result; });
  }
  const Result<worker::CaptureReply>& Await() {
    for (int i = 0; i < 500 && !result_; ++i) loop_->RunOnce(10);
    if (!result_) result_ = vmm::Error(Code::kInternal, "no result");
    capture_.reset();
    return *result_;
  }
  /// Of two disks, without memory.
  void AskForDisksAlone(bool pause) {
    request_.clear_state_path();
    request_.set_stop(false);
    request_.set_pause(pause);
    for (uint32_t lun = 0; lun < 2; ++lun) request_.add_children()->set_lun(lun);
  }
  MachineState State() const { return source_->machine().state(); }
  bool HasNoFiles() const { return std::filesystem::is_empty(folder_); }
  bool IsWhole() const {
    return vmm::SavedState::Open({folder_ + "/one.vmrs", ""}, *source_->memory).ok();
  }

  std::string folder_;
  worker::CaptureRequest request_;
  std::unique_ptr<vmm::Loop> loop_ = vmm::Loop::Create().value();
  std::unique_ptr<FakeSource> source_;
  std::optional<Result<worker::CaptureReply>> result_;
  std::unique_ptr<StateCapture> capture_;
};

TEST_F(StateCaptureTest, ASavedMachineIsStoppedForGood) {
  Begin();
  ASSERT_TRUE(Await().ok()) << result_->error().ToString();
  EXPECT_EQ(State(), MachineState::kSaved);
  EXPECT_TRUE(IsWhole());
}

TEST_F(StateCaptureTest, ACheckpointedOneRunsOn) {
  request_.set_stop(false);
  Begin();
  ASSERT_TRUE(Await().ok()) << result_->error().ToString();
  EXPECT_EQ(State(), MachineState::kRunning);
  EXPECT_TRUE(IsWhole());
}

TEST_F(StateCaptureTest, AGuestThatIsStoppedAlreadyRunsOnWhenItsSaveIsCancelled) {
  // At the end of the instant: what is left is copied, or not.
  source_->on_flush = [this]() -> Result<void> {
    EXPECT_EQ(State(), MachineState::kPaused);
    capture_->Cancel();
    return {};
  };
  Begin();
  EXPECT_EQ(Await().error().code(), Code::kCancelled);
  EXPECT_EQ(State(), MachineState::kRunning);
  EXPECT_TRUE(HasNoFiles());
}

TEST_F(StateCaptureTest, OneThatWasPausedStaysSo) {
  ASSERT_TRUE(source_->machine().Pause().ok());
  source_->on_flush = [this]() -> Result<void> {
    capture_->Cancel();
    return {};
  };
  Begin();
  EXPECT_EQ(Await().error().code(), Code::kCancelled);
  EXPECT_EQ(State(), MachineState::kPaused);
}

TEST_F(StateCaptureTest, AfterAFailureTheGuestRunsOn) {
  source_->on_flush = [] { return vmm::Error(Code::kResourceExhausted, "the disk is full"); };
  Begin();
  EXPECT_EQ(Await().error().code(), Code::kResourceExhausted);
  EXPECT_EQ(State(), MachineState::kRunning);
  EXPECT_TRUE(HasNoFiles());
}

using Switches = std::vector<std::pair<uint32_t, MachineState>>;

TEST_F(StateCaptureTest, DisksAloneAreTakenWhileTheGuestWritesNothing) {
  AskForDisksAlone(true);
  Begin();
  ASSERT_TRUE(Await().ok()) << result_->error().ToString();
  EXPECT_EQ(source_->switched, (Switches{{0, MachineState::kPaused}, {1, MachineState::kPaused}}));
  EXPECT_EQ(State(), MachineState::kRunning);
  EXPECT_NE((*result_)->pause_ns(), 0u);
}

/// A pause would thaw it.
TEST_F(StateCaptureTest, NorDoesAFrozenOneWhichIsNotPaused) {
  AskForDisksAlone(false);
  Begin();
  ASSERT_TRUE(Await().ok()) << result_->error().ToString();
  EXPECT_EQ(source_->switched,
            (Switches{{0, MachineState::kRunning}, {1, MachineState::kRunning}}));
}

TEST_F(StateCaptureTest, AfterADiskThatCannotBeTakenTheGuestRunsOn) {
  AskForDisksAlone(true);
  source_->on_switch = [](uint32_t lun) -> Result<void> {
    if (lun == 0) return {};
    return vmm::Error(Code::kResourceExhausted, "the disk is full");
  };
  Begin();
  EXPECT_EQ(Await().error().code(), Code::kResourceExhausted);
  EXPECT_EQ(State(), MachineState::kRunning);
}

TEST_F(StateCaptureTest, DisksOfAPausedMachineAreTakenAndItStaysPaused) {
  AskForDisksAlone(true);
  ASSERT_TRUE(source_->machine().Pause().ok());
  Begin();
  ASSERT_TRUE(Await().ok()) << result_->error().ToString();
  EXPECT_EQ(State(), MachineState::kPaused);
}

TEST_F(StateCaptureTest, WheneverItIsCancelledItIsSavedOrRunsOn) {
  for (uint64_t delay_us = 0; delay_us < 8000; delay_us += 200) {
    source_ = nullptr;
    source_ = std::make_unique<FakeSource>(*loop_);
    Begin();
    loop_->AddTimer(delay_us * 1000, [this] {
      if (capture_) capture_->Cancel();
    });
    const bool saved = Await().ok();
    ASSERT_EQ(State(), saved ? MachineState::kSaved : MachineState::kRunning) << delay_us;
    ASSERT_EQ(IsWhole(), saved) << delay_us;
    ASSERT_EQ(HasNoFiles(), !saved) << delay_us;
    std::filesystem::remove(folder_ + "/one.vmrs");
  }
}

TEST_F(StateCaptureTest, NothingMakesAMachineRunThatIsBeingSaved) {
  source_->on_flush = [this]() -> Result<void> {
    loop_->Post([this] {
      const auto resumed = source_->machine().Resume();
      EXPECT_FALSE(resumed.ok());
      source_->machine().OnResetRequest("a processor at the last moment");
    });
    return {};
  };
  Begin();
  ASSERT_TRUE(Await().ok()) << result_->error().ToString();
  EXPECT_EQ(State(), MachineState::kSaved);
  EXPECT_EQ(source_->machine().reboots(), 0u);
}

TEST_F(StateCaptureTest, WhoGoesInTheMiddleOfItWaitsForNobody) {
  source_->on_flush = [this]() -> Result<void> {
    loop_->Post([this] { capture_.reset(); });
    return {};
  };
  Begin();
  for (int i = 0; i < 500 && capture_; ++i) loop_->RunOnce(10);
  EXPECT_EQ(capture_, nullptr);
  EXPECT_FALSE(result_.has_value());
}

}  // namespace
}  // namespace kvmbus::cmd
