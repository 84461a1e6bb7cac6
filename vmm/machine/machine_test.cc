// SPDX-License-Identifier: Apache-2.0
#include "vmm/machine/machine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/fakes/fake_vm.h"
#include "vmm/os/log.h"

namespace kvmbus::vmm {
namespace {

using S = MachineState;

TEST(LifeCycleTest, OnlyTheDrawnArrowsExist) {
  const std::pair<S, S> allowed[] = {
      {S::kOff, S::kStarting},      {S::kStarting, S::kRunning}, {S::kStarting, S::kPaused},
      {S::kStarting, S::kStopping}, {S::kStarting, S::kOff},     {S::kRunning, S::kPausing},
      {S::kRunning, S::kStopping},  {S::kPausing, S::kPaused},   {S::kPausing, S::kStopping},
      {S::kPaused, S::kRunning},    {S::kPaused, S::kSaving},    {S::kPaused, S::kStopping},
      {S::kSaving, S::kSaved},      {S::kSaving, S::kPaused},    {S::kSaving, S::kStopping},
      {S::kSaved, S::kStopping},    {S::kStopping, S::kOff}};
  for (int from = 0; from < 8; ++from) {
    for (int to = 0; to < 8; ++to) {
      const std::pair<S, S> arrow{static_cast<S>(from), static_cast<S>(to)};
      EXPECT_EQ(MayChange(arrow.first, arrow.second),
                std::find(std::begin(allowed), std::end(allowed), arrow) != std::end(allowed))
          << MachineStateName(arrow.first) << " -> " << MachineStateName(arrow.second);
    }
  }
}

/// Records the calls that it gets.
class Recorder final : public StateUnit {
 public:
  Recorder(std::string name, std::string* log) : name_(std::move(name)), log_(log) {}
  std::string_view unit_name() const override { return name_; }
  void Start() override { *log_ += "+" + name_; }
  void Stop() override { *log_ += "-" + name_; }
  void Reset() override { value = 0; }
  Result<std::string> Save() override { return std::to_string(value); }
  Result<void> Restore(uint32_t, std::string_view state) override {
    if (state.empty() || state.find_first_not_of("0123456789") != std::string_view::npos)
      return Error(Code::kDataLoss, "not a number");
    value = std::stoi(std::string(state));
    return {};
  }
  int value = 0;

 private:
  std::string name_;
  std::string* log_;
};

class MachineTest : public testing::Test {
 protected:
  MachineTest() {
    spdlog::set_level(spdlog::level::off);  // every change of state is a line
    loop_ = Loop::Create().value();
    const MemoryRange ram[] = {{0, 4 << 20}};
    memory_ = GuestMemory::Create(ram).value();
    auto vm = std::make_unique<tests::FakeVm>(3);
    vm_ = vm.get();
    Machine::Callbacks callbacks;
    callbacks.ended = [this](Code, std::string reason) { ended_ = std::move(reason); };
    machine_ = std::make_unique<Machine>(*loop_, *memory_, std::move(vm), std::move(callbacks));
    machine_->AddUnit(a_);
    machine_->AddUnit(b_);
    machine_->SetBootLoader([this]() -> Result<BootState> {
      ++loads_;
      BootState boot;
      boot.rip = 0x1000;
      return boot;
    });
  }

  std::string log_;
  std::string ended_;
  int loads_ = 0;
  Recorder a_{"a", &log_};
  Recorder b_{"b", &log_};
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<GuestMemory> memory_;
  tests::FakeVm* vm_ = nullptr;
  std::unique_ptr<Machine> machine_;
};

TEST_F(MachineTest, UnitsStartInOrderAndStopInReverse) {
  ASSERT_TRUE(machine_->PowerOn().ok());
  EXPECT_EQ(log_, "+a+b");
  ASSERT_TRUE(machine_->Pause().ok());
  EXPECT_EQ(log_, "+a+b-b-a");
  EXPECT_EQ(machine_->state(), S::kPaused);
  ASSERT_TRUE(machine_->Resume().ok());
  ASSERT_TRUE(machine_->TurnOff(Code::kOk, "turned off").ok());
  EXPECT_EQ(machine_->state(), S::kOff);
  EXPECT_EQ(ended_, "turned off");
}

TEST_F(MachineTest, OneThatIsBeingSavedDoesNotChange) {
  ASSERT_TRUE(machine_->PowerOn().ok());
  EXPECT_FALSE(machine_->BeginSaving().ok()) << "it runs";
  ASSERT_TRUE(machine_->Pause().ok());
  EXPECT_FALSE(machine_->MarkSaved().ok()) << "nobody saves it";
  EXPECT_FALSE(machine_->GiveUpSaving().ok());
  ASSERT_TRUE(machine_->BeginSaving().ok());
  EXPECT_FALSE(machine_->Resume().ok());
  machine_->OnResetRequest("test");
  loop_->RunOnce(0);
  EXPECT_EQ(loads_, 1);
  ASSERT_TRUE(machine_->GiveUpSaving().ok());
  EXPECT_EQ(machine_->state(), S::kPaused);
  ASSERT_TRUE(machine_->BeginSaving().ok());
  ASSERT_TRUE(machine_->MarkSaved().ok());
  ASSERT_TRUE(machine_->TurnOff(Code::kOk, "turned off").ok());
}

TEST_F(MachineTest, PulseKeepsStateAndMemory) {
  ASSERT_TRUE(machine_->PowerOn().ok());
  a_.value = 41;
  ASSERT_TRUE(memory_->WriteObject<uint64_t>(0x2ff8, 0x1234567890));
  ASSERT_TRUE(machine_->Pulse().ok());
  EXPECT_EQ(machine_->state(), S::kRunning);
  EXPECT_EQ(a_.value, 41);
  EXPECT_EQ(vm_->resets, 1);
  EXPECT_EQ(memory_->ReadObject<uint64_t>(0x2ff8), 0x1234567890u);
}

TEST_F(MachineTest, ResetLoadsAgainAndRunsOn) {
  ASSERT_TRUE(machine_->PowerOn().ok());
  a_.value = 5;
  machine_->OnResetRequest("test");
  machine_->OnResetRequest("test");  // a second processor asks at the same time
  loop_->RunOnce(0);
  EXPECT_EQ(loads_, 2);
  EXPECT_EQ(a_.value, 0);
  EXPECT_EQ(machine_->reboots(), 1u);
  EXPECT_EQ(machine_->state(), S::kRunning);
}

TEST_F(MachineTest, PowerOffRequestedByTheGuestEndsIt) {
  ASSERT_TRUE(machine_->PowerOn().ok());
  machine_->RequestPowerOff("guest shut down");
  loop_->RunOnce(0);
  EXPECT_EQ(machine_->state(), S::kOff);
  EXPECT_EQ(ended_, "guest shut down");
}

TEST_F(MachineTest, AFailedLoadLeavesItOffAndUntouched) {
  machine_->SetBootLoader(
      []() -> Result<BootState> { return Error(Code::kNotFound, "no kernel"); });
  const auto started = machine_->PowerOn();
  ASSERT_FALSE(started.ok());
  EXPECT_EQ(machine_->state(), S::kOff);
  EXPECT_EQ(log_, "");
}

TEST_F(MachineTest, SavedStateOfAnotherMachineIsRefusedBeforeAnythingChanges) {
  ASSERT_TRUE(machine_->PowerOn().ok());
  ASSERT_TRUE(machine_->Pause().ok());
  std::string stream = machine_->SaveUnits().value();
  a_.value = 9;
  const size_t at = stream.find("b0");
  ASSERT_NE(at, std::string::npos);
  stream[at] = 'c';
  EXPECT_EQ(machine_->RestoreUnits(stream).error().code(), Code::kFailedPrecondition);
  EXPECT_EQ(a_.value, 9);
}

// The life cycle under random requests: whatever the order, it ends Off and nothing hangs.
TEST_F(MachineTest, RandomSequencesOfRequestsKeepTheInvariants) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    switch (random() % 6) {
      case 0:
        (void)machine_->PowerOn();
        break;
      case 1:
        (void)machine_->Pause();
        break;
      case 2:
        (void)machine_->Resume();
        break;
      case 3:
        (void)machine_->TurnOff(Code::kOk, "x");
        break;
      case 4:
        machine_->OnResetRequest("x");
        break;
      case 5:
        (void)machine_->Pulse();
        break;
    }
    loop_->RunOnce(0);
    const S state = machine_->state();
    ASSERT_TRUE(state == S::kOff || state == S::kRunning || state == S::kPaused);
  }
}

}  // namespace
}  // namespace kvmbus::vmm
