// SPDX-License-Identifier: Apache-2.0
/// \file
/// The inventory of one machine, whose worker answers as the test tells it.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <memory>
#include <string>

#include "tests/fakes/fake_worker.h"
#include "vmm/config/limits.h"
#include "vmm/manager/inventory.h"
#include "vmm/os/file.h"

namespace kvmbus::vmm {

/// Something that vmmd takes for a worker; it can be killed, and is in the end.
class SleepingProcess {
 public:
  SleepingProcess() : pid_(::fork()) {
    if (pid_ != 0) return;
    ::pause();
    ::_exit(0);
  }
  ~SleepingProcess() {
    Kill();
    ::waitpid(pid_, nullptr, 0);
  }
  void Kill() const { ::kill(pid_, SIGKILL); }
  uint32_t pid() const { return static_cast<uint32_t>(pid_); }

 private:
  const pid_t pid_;
};

class ManagerTest : public testing::Test {
 protected:
  static constexpr const char* kId = "11111111-2222-3333-4444-555555555555";

  /// A machine without disks, which nobody has stored yet.
  ManagerTest() {
    char folder[] = "/tmp/manager-test-XXXXXX";
    folder_ = ::mkdtemp(folder);
    loop_ = Loop::Create().value();
    vm_.set_id(kId);
    vm_.set_name("one");
    vm_.set_memory_bytes(uint64_t{1} << 30);
    vm_.mutable_firmware()->set_kernel("/kernel");
    ApplyDefaults(&vm_);
  }
  ~ManagerTest() override {
    inventory_.reset();
    worker_.reset();
    std::filesystem::remove_all(folder_);
  }

  std::unique_ptr<ConfigStore> Store() { return OpenFileConfigStore(folder_ + "/state").value(); }
  /// As a new vmmd does.
  void OpenInventory() {
    inventory_.reset();
    Inventory::Options options;
    options.state_dir = folder_ + "/state/";
    options.run_dir = folder_ + "/run";
    options.worker_path = "/bin/false";
    options.check_host = [] { return std::vector<HostRequirement>(); };
    inventory_ = Inventory::Open(*loop_, std::move(options)).value();
  }
  void StartWorker(tests::FakeWorker::Answer answer) {
    ASSERT_TRUE(MakeFolders(folder_ + "/run/" + kId).ok());
    worker_ = std::make_unique<tests::FakeWorker>(*loop_, folder_ + "/run/" + kId + "/worker.sock",
                                                  std::move(answer));
  }
  /// What a worker says first.
  static void Greet(const config::Vm& vm, worker::State state, uint32_t pid, worker::Reply* reply) {
    reply->mutable_hello()->set_protocol(worker::PROTOCOL_CURRENT);
    *reply->mutable_hello()->mutable_config() = vm;
    reply->mutable_hello()->set_names_children(true);
    reply->mutable_hello()->mutable_status()->set_state(state);
    reply->mutable_hello()->mutable_status()->set_pid(pid);
  }
  void Turn(const std::function<bool()>& until, int turns = 500) {
    for (int i = 0; i < turns && !until(); ++i) loop_->RunOnce(10);
    ASSERT_TRUE(until());
  }

  std::string folder_;
  config::Vm vm_;
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<tests::FakeWorker> worker_;
  std::unique_ptr<Inventory> inventory_;
};

}  // namespace kvmbus::vmm
