// SPDX-License-Identifier: Apache-2.0
// What the inventory does with configurations, without workers.
#include "vmm/manager/inventory.h"

#include <fstream>
#include <optional>

#include "vmm/manager/manager_test_host.h"

namespace kvmbus::vmm {
namespace {

class InventoryTest : public ManagerTest {
 protected:
  InventoryTest() { Open(); }

  void Open() { OpenInventory(); }
  static config::Vm Sample(const std::string& version) {
    config::Vm vm;
    vm.set_name("one");
    vm.set_version(version);
    vm.set_memory_bytes(uint64_t{1} << 30);
    vm.mutable_firmware()->set_kernel("/kernel");
    return vm;
  }
};

TEST_F(InventoryTest, ANewMachineIsOfTheNewestVersionInTheStatesFolder) {
  const auto id = inventory_->Create(Sample(""));
  ASSERT_TRUE(id.ok()) << id.error().ToString();
  for (int i = 0; i < 2; ++i, Open()) {
    const config::Vm vm = inventory_->Get(*id)->config;
    EXPECT_EQ(vm.version(), "6.2");
    EXPECT_EQ(vm.folder(), folder_ + "/state");
    EXPECT_EQ(vm.generation_id().size(), 16u);
  }
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/state/Virtual Machines/" + *id + ".vmcx"));
}

TEST_F(InventoryTest, ANewMachineHasNoPast) {
  config::Vm vm = Sample("6.2");
  vm.set_saved(true);
  EXPECT_EQ(inventory_->Create(vm).error().code(), Code::kInvalidArgument);
  vm = Sample("6.2");
  vm.mutable_checkpoint()->set_id("0AA394FA-7C4A-4070-BA32-773D43B28A68");
  EXPECT_EQ(inventory_->Create(vm).error().code(), Code::kInvalidArgument);
  vm = Sample("6.2");
  vm.set_parent_checkpoint("0AA394FA-7C4A-4070-BA32-773D43B28A68");
  EXPECT_EQ(inventory_->Create(vm).error().code(), Code::kInvalidArgument);
  EXPECT_TRUE(inventory_->List().empty());
}

TEST_F(InventoryTest, AMachineIsUpgradedOnce) {
  const std::string id = inventory_->Create(Sample("5.0")).value();
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/state/Virtual Machines/" + id + ".xml"));
  const auto upgraded = inventory_->Upgrade(id, false);
  ASSERT_TRUE(upgraded.ok()) << upgraded.error().ToString();
  EXPECT_EQ(inventory_->Upgrade(id, false).error().code(), Code::kFailedPrecondition);
  EXPECT_EQ(inventory_->Upgrade("none", false).error().code(), Code::kNotFound);
  for (int i = 0; i < 2; ++i, Open()) EXPECT_EQ(inventory_->Get(id)->config.version(), "6.2");
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/state/Virtual Machines/" + id + ".xml"));
  EXPECT_TRUE(inventory_->Delete(id).ok());
  EXPECT_TRUE(std::filesystem::is_empty(folder_ + "/state/Virtual Machines"));
}

TEST_F(InventoryTest, AMachineIsRegisteredWhereItIs) {
  // Made here, then forgotten: as it would come from elsewhere.
  std::filesystem::create_directories(folder_ + "/in");
  std::ofstream(folder_ + "/in/kernel") << "kernel";
  config::Vm vm = Sample("6.2");
  vm.set_folder(std::filesystem::canonical(folder_ + "/in").string());
  vm.mutable_firmware()->set_kernel(vm.folder() + "/kernel");
  const std::string id = inventory_->Create(vm).value();
  config::Vm checkpoint = inventory_->Get(id)->config;
  checkpoint.mutable_checkpoint()->set_id("0AA394FA-7C4A-4070-BA32-773D43B28A68");
  ASSERT_TRUE(inventory_->Store(checkpoint).ok());
  vm = inventory_->Get(id)->config;
  EXPECT_EQ(inventory_->Register(vm, {checkpoint}).error().code(), Code::kAlreadyExists);
  std::filesystem::remove(folder_ + "/state/data.vmcx");
  Open();
  ASSERT_TRUE(inventory_->List().empty());
  const auto registered = inventory_->Register(vm, {checkpoint});
  ASSERT_TRUE(registered.ok()) << registered.error().ToString();
  for (int i = 0; i < 2; ++i, Open()) {
    EXPECT_EQ(inventory_->Get(id)->config.name(), "one");
    EXPECT_EQ(inventory_->Checkpoints(id).size(), 1u);
  }
}

TEST_F(InventoryTest, CheckpointsAreUpgradedAlong) {
  const std::string id = inventory_->Create(Sample("5.0")).value();
  config::Vm checkpoint = inventory_->Get(id)->config;
  checkpoint.mutable_checkpoint()->set_id("0AA394FA-7C4A-4070-BA32-773D43B28A68");
  checkpoint.set_saved(true);
  ASSERT_TRUE(inventory_->Store(checkpoint).ok());
  EXPECT_EQ(inventory_->Upgrade(id, false).error().code(), Code::kFailedPrecondition);
  ASSERT_TRUE(inventory_->Reserve(id, "being tested").ok());
  EXPECT_EQ(inventory_->Upgrade(id, true).error().code(), Code::kFailedPrecondition);
  inventory_->Release(id);
  ASSERT_TRUE(inventory_->Upgrade(id, true).ok());
  for (int i = 0; i < 2; ++i, Open()) {
    const auto checkpoints = inventory_->Checkpoints(id);
    ASSERT_EQ(checkpoints.size(), 1u);
    EXPECT_EQ(checkpoints.begin()->second.version(), "6.2");
    EXPECT_FALSE(checkpoints.begin()->second.saved());
  }
}

/// Written to, it would be of no use to the checkpoint any more.
TEST_F(InventoryTest, NobodyElseWritesToWhatACheckpointStandsOn) {
  const std::string base = folder_ + "/base.vhdx", link = folder_ + "/link.vhdx";
  std::ofstream(base) << "x";
  std::filesystem::create_symlink(base, link);
  const std::string id = inventory_->Create(Sample("6.2")).value();
  config::Vm checkpoint = inventory_->Get(id)->config;
  checkpoint.mutable_checkpoint()->set_id("0AA394FA-7C4A-4070-BA32-773D43B28A68");
  checkpoint.mutable_checkpoint()->set_name("before");
  checkpoint.add_disks()->set_path(base);
  ASSERT_TRUE(inventory_->Store(checkpoint).ok());
  config::Vm other = Sample("6.2");
  other.set_name("two");
  other.add_disks()->set_path(link);
  const std::string two = inventory_->Create(other).value();
  std::optional<Result<void>> result;
  const auto done = [&result](const Result<void>& ended) { result = ended; };
  inventory_->Start(two, done);
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->error().code(), Code::kFailedPrecondition);
  EXPECT_NE(result->error().ToString().find("checkpoint 'before' of 'one'"), std::string::npos);
  config::Disk disk;
  disk.set_path(base);
  disk.set_lun(1);
  for (const std::string& machine : {id, two}) {
    inventory_->AttachDisk(machine, disk, done);
    EXPECT_EQ(result->error().code(), Code::kFailedPrecondition);
  }
  disk.set_read_only(true);
  inventory_->AttachDisk(two, disk, done);
  EXPECT_TRUE(result->ok()) << result->error().ToString();
}

/// It is known by its socket, whatever it says and whenever.
TEST_F(InventoryTest, AWorkerThatDoesNotAnswerRunsAllTheSame) {
  inventory_.reset();
  ASSERT_TRUE(Store()->Save(vm_).ok());
  StartWorker([](const worker::Request&) -> std::optional<worker::Reply> {
    ADD_FAILURE() << "nobody has turned the loop";
    return std::nullopt;
  });
  Open();
  EXPECT_EQ(inventory_->Get(kId)->status.state(), worker::RUNNING);
  EXPECT_EQ(inventory_->Delete(kId).error().code(), Code::kFailedPrecondition);
  std::optional<Result<void>> off, started;
  inventory_->TurnOff(kId, [&off](const Result<void>& result) { off = result; });
  EXPECT_FALSE(off.has_value()) << "it runs yet";
  inventory_->Start(kId, [&started](const Result<void>& result) { started = result; });
  ASSERT_TRUE(started.has_value());
  EXPECT_EQ(started->error().code(), Code::kAlreadyExists);
  worker_.reset();
  Turn([&off] { return off.has_value(); });
  EXPECT_TRUE(off->ok());
  EXPECT_EQ(inventory_->Get(kId)->status.state(), worker::OFF);
}

TEST_F(InventoryTest, AWorkerOfAnotherProtocolIsLeftAloneUntilItIsTurnedOff) {
  inventory_.reset();
  ASSERT_TRUE(Store()->Save(vm_).ok());
  SleepingProcess process;
  int other_requests = 0;
  StartWorker([&](const worker::Request& request) {
    worker::Reply reply;
    if (!request.has_hello()) ++other_requests;
    Greet(vm_, worker::RUNNING, process.pid(), &reply);
    reply.mutable_hello()->set_protocol(worker::PROTOCOL_CURRENT + 1);
    return reply;
  });
  Open();
  Turn([this] { return !inventory_->Get(kId)->status.reason().empty(); });
  std::optional<Result<void>> result;
  inventory_->Shutdown(kId, false, false, [&](const Result<void>& done) { result = done; });
  ASSERT_TRUE(result.has_value());
  EXPECT_NE(result->error().ToString().find("another version"), std::string::npos);
  EXPECT_NE(result->error().ToString().find("vmctl vm turn-off"), std::string::npos);
  result.reset();
  inventory_->TurnOff(kId, [&](const Result<void>& done) { result = done; });
  Turn([&] { return result.has_value(); });
  EXPECT_TRUE(result->ok());
  EXPECT_EQ(other_requests, 0);
}

class RunningMachineTest : public InventoryTest {
 protected:
  RunningMachineTest() {
    inventory_.reset();
    EXPECT_TRUE(Store()->Save(vm_).ok());
    StartWorker([this](const worker::Request& request) -> std::optional<worker::Reply> {
      worker::Reply reply;
      reply.mutable_status();
      if (request.has_turn_off() && ++turn_offs_ == 1) return std::nullopt;
      if (request.has_turn_off()) process_.Kill();
      if (request.has_hello()) Greet(vm_, worker::RUNNING, process_.pid(), &reply);
      if (request.has_hello()) ++hellos_;
      if (request.has_detach_disk()) ++detached_;
      if (request.has_attach_disk() && on_attach_) on_attach_();
      return reply;
    });
    Open();
    Turn([this] { return hellos_ == 1; });
  }

  SleepingProcess process_;
  int hellos_ = 0, detached_ = 0, turn_offs_ = 0;
  std::function<void()> on_attach_;
};

TEST_F(RunningMachineTest, AWorkerThatHangsUpIsConnectedToAgain) {
  worker_->HangUp();
  Turn([this] { return hellos_ == 2; });
  std::optional<Result<void>> result;
  const auto shut_down = [&] {
    inventory_->Shutdown(kId, false, false, [&](const Result<void>& done) { result = done; });
  };
  shut_down();
  Turn([&] { return result.has_value(); });
  EXPECT_TRUE(result->ok()) << result->error().ToString();
  EXPECT_EQ(inventory_->Get(kId)->status.state(), worker::RUNNING);
}

TEST_F(RunningMachineTest, AWorkerThatHangsUpIsTurnedOffAllTheSame) {
  std::optional<Result<void>> off;
  inventory_->TurnOff(kId, [&off](const Result<void>& result) { off = result; });
  Turn([&off] { return off.has_value(); });
  EXPECT_TRUE(off->ok());
  EXPECT_EQ(turn_offs_, 2);
  EXPECT_EQ(inventory_->Get(kId)->status.state(), worker::OFF);
}

TEST_F(RunningMachineTest, AWorkerThatHangsUpAndEndsIsNot) {
  worker_->HangUp();
  process_.Kill();
  Turn([this] { return inventory_->Get(kId)->status.state() == worker::OFF; });
  for (int i = 0; i < 40; ++i) loop_->RunOnce(10);
  EXPECT_EQ(hellos_, 1);
}

/// Else the guest would have a disk that the next start does not know.
TEST_F(RunningMachineTest, AnAttachedDiskThatCannotBeStoredIsTakenAway) {
  const std::string folder = folder_ + "/state/Virtual Machines";
  on_attach_ = [&] {
    std::filesystem::rename(folder, folder + ".gone");
    std::ofstream(folder) << "no folder";
  };
  config::Disk disk;
  disk.set_path("/a.vhdx");
  std::optional<Result<void>> attached;
  inventory_->AttachDisk(kId, disk, [&](const Result<void>& result) { attached = result; });
  Turn([&] { return attached.has_value(); });
  EXPECT_FALSE(attached->ok());
  EXPECT_EQ(detached_, 1);
  EXPECT_EQ(inventory_->Get(kId)->config.disks_size(), 0);
}

TEST_F(RunningMachineTest, NoJobBeginsWhileADiskIsAttached) {
  config::Disk disk;
  disk.set_path("/a.vhdx");
  std::optional<Result<void>> attached;
  inventory_->AttachDisk(kId, disk, [&](const Result<void>& result) { attached = result; });
  EXPECT_EQ(inventory_->Reserve(kId, "a job").error().code(), Code::kFailedPrecondition);
  Turn([&] { return attached.has_value(); });
  EXPECT_TRUE(attached->ok());
  EXPECT_TRUE(inventory_->Reserve(kId, "a job").ok());
}

}  // namespace
}  // namespace kvmbus::vmm
