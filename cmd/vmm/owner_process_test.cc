// SPDX-License-Identifier: Apache-2.0
// Owners of shared disks as processes of their own, started and watched as vmmd does it, on real
// images: no privileges and no KVM are needed for that.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>

#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/shared_disk/remote_queue.h"
#include "virtdev/shared_disk/remote_scsi_disk.h"
#include "virtdev/shared_disk/shared_disk_test.h"
#include "vmm/manager/disk_owners.h"

namespace kvmbus::cmd {
namespace {

namespace fs = std::filesystem;
using virtdev::shared_disk_test::Bytes;
using virtdev::shared_disk_test::Node;
using vmm::Code;
using vmm::DiskOwners;
using vmm::Result;

class OwnerProcess : public ::testing::Test {
 protected:
  OwnerProcess() {
    char name[] = "/tmp/kvmbus-owner-XXXXXX";
    folder_ = ::mkdtemp(name);
    image_ = folder_ + "/disk.vhdx";
    virtdev::CreateDiskOptions options;
    options.size_bytes = 64 << 20;
    EXPECT_TRUE(virtdev::CreateDisk(image_, options).ok());
    owners_ = NewOwners();
  }
  ~OwnerProcess() override {
    hold_.reset();
    owners_.reset();
    EXPECT_TRUE(Eventually([&] { return OwnerPid() == 0; }));
    fs::remove_all(folder_);
  }

  std::unique_ptr<DiskOwners> NewOwners() {
    DiskOwners::Options options;
    options.run_dir = folder_ + "/run";
    options.program = VMM_PROGRAM;
    options.restart_ns = 1'000'000;
    return std::make_unique<DiskOwners>(*loop_, options);
  }
  Result<DiskOwners::Hold> Acquire(const std::string& image) {
    Result<DiskOwners::Hold> result = vmm::Error(Code::kUnknown, "no answer");
    bool answered = false;
    owners_->Acquire(image, [&](const Result<DiskOwners::Hold>& hold) {
      result = hold;
      answered = true;
    });
    EXPECT_TRUE(Eventually([&] { return answered; }));
    return result;
  }
  std::string Folder() const { return vmm::shared_disk::OwnerFolder(folder_ + "/run", image_); }
  std::string Socket() const { return Folder() + "/owner.sock"; }
  /// 0: none.
  pid_t OwnerPid() const {
    for (const auto& process : fs::directory_iterator("/proc")) {
      std::ifstream file(process.path() / "cmdline");
      const std::string words((std::istreambuf_iterator<char>(file)), {});
      if (words.find(std::string("--shared-disk") + '\0' + image_) != std::string::npos)
        return std::stoi(process.path().filename().string());
    }
    return 0;
  }
  template <typename Condition>
  bool Eventually(Condition condition) {
    for (int i = 0; i < 6000; ++i) {
      if (condition()) return true;
      loop_->RunOnce(5);
    }
    return false;
  }

  std::string folder_, image_;
  std::unique_ptr<vmm::Loop> loop_ = *vmm::Loop::Create();
  std::unique_ptr<DiskOwners> owners_;
  DiskOwners::Hold hold_;
};

TEST_F(OwnerProcess, ServesAsLongAsItIsHeldOrUsed) {
  auto held = Acquire(image_);
  ASSERT_TRUE(held.ok()) << held.error().ToString();
  hold_ = *held;
  const pid_t pid = OwnerPid();
  ASSERT_NE(pid, 0);
  EXPECT_EQ(*Acquire(image_), hold_) << "one for all";
  fs::create_symlink(image_, folder_ + "/name.vhdx");
  EXPECT_EQ(*Acquire(folder_ + "/name.vhdx"), hold_) << "whatever its name";
  const auto taken = virtdev::OpenDisk(image_, {});
  ASSERT_FALSE(taken.ok());
  EXPECT_EQ(taken.error().code(), Code::kUnavailable);
  EXPECT_NE(taken.error().ToString().find("--shared"), std::string::npos);
  const Bytes data(4096, 0x5a);
  {
    Node a(Socket(), 1), b(Socket(), 2);
    EXPECT_EQ(a.disk->format(), "vhdx");
    hold_.reset();
    held = vmm::Error(Code::kUnknown, "");
    ASSERT_TRUE(a.Write(5000, data).good());
    EXPECT_EQ(b.Read(5000, 8).data, data);
    Eventually([&, turns = 0]() mutable { return ++turns > 60; });
    EXPECT_EQ(OwnerPid(), pid) << "it is used";
    ASSERT_TRUE(a.Register(0xa, true).good());
  }
  EXPECT_TRUE(Eventually([&] { return OwnerPid() == 0; }));
  EXPECT_TRUE(virtdev::DescribeDisk(image_)->clean);
  EXPECT_TRUE(fs::exists(image_ + ".reservations"));
  hold_ = *Acquire(image_);
  Node a(Socket(), 1);
  EXPECT_EQ(a.Read(5000, 8).data, data);
  EXPECT_EQ(a.ReadKeys(), std::vector<uint64_t>{0xa});
}

TEST_F(OwnerProcess, OneThatIsKilledIsStartedAnew) {
  hold_ = *Acquire(image_);
  Node a(Socket(), 1);
  const Bytes data(4096, 0x77);
  ASSERT_TRUE(a.Write(64, data).good());
  ASSERT_TRUE(a.Flush().good());
  const pid_t pid = OwnerPid();
  ::kill(pid, SIGKILL);
  while (OwnerPid() == pid) ::usleep(1000);
  const auto read = a.Begin(Node::Cdb10(0x28, 64, 8), true, Bytes(4096));
  EXPECT_TRUE(Eventually([&] {
    a.loop->RunOnce(1);
    return read->ended;
  }));
  EXPECT_TRUE(read->ended_with(virtdev::scsi::Status::kBusy));
  EXPECT_TRUE(a.Ready().failed_with(virtdev::scsi::kPowerOnOccurred));
  EXPECT_EQ(a.Read(64, 8).data, data);
  EXPECT_NE(OwnerPid(), pid);
  EXPECT_NE(OwnerPid(), 0);
}

TEST_F(OwnerProcess, IsFoundAgain) {
  hold_ = *Acquire(image_);
  Node a(Socket(), 1);
  const pid_t pid = OwnerPid();
  owners_.reset();  // as vmmd ends: its connection goes, and nobody asks for the disk
  hold_.reset();
  Eventually([&, turns = 0]() mutable { return ++turns > 60; });
  owners_ = NewOwners();
  hold_ = *Acquire(image_);
  EXPECT_EQ(OwnerPid(), pid);
  EXPECT_TRUE(a.Ready().good());
}

TEST_F(OwnerProcess, MakesItsDiskLarger) {
  EXPECT_FALSE(owners_->Serves(image_));
  hold_ = *Acquire(image_);
  EXPECT_TRUE(owners_->Serves(image_));
  Node a(Socket(), 1);
  ASSERT_TRUE(a.Ready().good());
  const auto grow = [&](uint64_t size_bytes) {
    Result<void> result = vmm::Error(Code::kUnknown, "no answer");
    bool answered = false;
    owners_->Grow(image_, size_bytes, [&](const Result<void>& grown) {
      result = grown;
      answered = true;
    });
    EXPECT_TRUE(Eventually([&] { return answered; }));
    return result;
  };
  const auto grown = grow(96 << 20);
  ASSERT_TRUE(grown.ok()) << grown.error().ToString();
  EXPECT_TRUE(Eventually([&] {
    a.loop->RunOnce(1);
    return a.disk->info().size_bytes == 96 << 20;
  }));
  EXPECT_TRUE(a.Ready().failed_with(virtdev::scsi::kCapacityChanged));
  const Bytes data(4096, 0x33);
  const uint32_t last = (96 << 20) / 512 - 8;
  ASSERT_TRUE(a.Write(last, data).good());
  EXPECT_EQ(a.Read(last, 8).data, data);
  const auto shrunk = grow(64 << 20);
  ASSERT_FALSE(shrunk.ok());
  EXPECT_NE(shrunk.error().ToString().find("shrink"), std::string::npos)
      << shrunk.error().ToString();
  ::kill(OwnerPid(), SIGSTOP);
  owners_->Grow(image_, 128 << 20, [](const Result<void>&) { FAIL() << "it was dropped"; });
  const pid_t pid = OwnerPid();
  owners_.reset();
  ::kill(pid, SIGCONT);
}

TEST_F(OwnerProcess, SaysWhyItCannot) {
  const std::string child = folder_ + "/child.vhdx";
  virtdev::CreateDiskOptions options;
  options.parent = image_;
  ASSERT_TRUE(virtdev::CreateDisk(child, options).ok());
  const auto refused = Acquire(child);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Code::kInvalidArgument);
  EXPECT_NE(refused.error().ToString().find("differencing"), std::string::npos)
      << refused.error().ToString();
  const auto missing = Acquire(folder_ + "/none.vhdx");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code(), Code::kNotFound);
  const auto taken = *virtdev::OpenDisk(image_, {});
  const auto busy = Acquire(image_);
  ASSERT_FALSE(busy.ok());
  EXPECT_EQ(busy.error().code(), Code::kUnavailable);
  EXPECT_TRUE(taken->Close().ok());
}

}  // namespace
}  // namespace kvmbus::cmd
