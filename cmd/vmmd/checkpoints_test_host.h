// SPDX-License-Identifier: Apache-2.0
/// \file
/// The manager on real files, without workers: for tests of checkpoints.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cmd/vmmd/image_files.h"
#include "tests/fakes/killed_process.h"
#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/tools/image_io.h"
#include "vmm/config/vm_files.h"
#include "vmm/manager/checkpoints.h"
#include "vmm/manager/transfers.h"
#include "vmm/os/file.h"

namespace kvmbus::cmd {

/// A vmmd of a folder: what is in it is found.
class TestHost {
 public:
  explicit TestHost(const std::string& folder, const std::string& worker = "/bin/false")
      : folder_(folder) {
    loop = std::move(vmm::Loop::Create()).value();
    vmm::Inventory::Options options;
    options.state_dir = folder + "/state";
    options.run_dir = folder + "/run";
    options.worker_path = worker;
    options.check_host = [] { return std::vector<vmm::HostRequirement>(); };
    inventory = std::move(vmm::Inventory::Open(*loop, std::move(options))).value();
    jobs = std::move(vmm::Jobs::Open(folder + "/state/jobs", loop->clock())).value();
    checkpoints = std::make_unique<vmm::Checkpoints>(*loop, *inventory, *jobs, files);
    transfers = std::make_unique<vmm::Transfers>(*loop, *inventory, *checkpoints, *jobs, files);
  }

  static constexpr uint64_t kBlock = 1u << 20, kBlocks = 4;

  /// Until no job runs; false if that takes too long.
  bool Settle() {
    for (int turn = 0; turn < 3000; ++turn) {
      if (jobs->Unfinished().empty()) return true;
      loop->RunOnce(10);
    }
    return false;
  }
  config::Vm Vm() const { return inventory->List().front().config; }
  std::string Id() const { return Vm().id(); }
  vmm::CheckpointMap All() const { return inventory->Checkpoints(Id()); }

  /// A machine with one disk of 4 MiB, saved with `memory` unless that is "".
  void MakeVm(const std::string& memory, const std::string& version = "") {
    const std::string disk = folder_ + "/disk.vhdx";
    virtdev::CreateDiskOptions options;
    options.size_bytes = kBlocks * kBlock;
    options.block_bytes = kBlock;
    ASSERT_TRUE(virtdev::CreateDisk(disk, options).ok());
    config::Vm vm;
    vm.set_name("t");
    vm.set_version(version);
    vm.set_memory_bytes(64u << 20);
    ASSERT_TRUE(vmm::ReplaceFile(folder_ + "/vmlinuz", "kernel").ok());
    vm.mutable_firmware()->set_kernel(folder_ + "/vmlinuz");
    config::Disk* added = vm.add_disks();
    added->set_path(disk);
    vm.set_checkpoint_policy(config::STANDARD);
    const auto id = inventory->Create(vm);
    ASSERT_TRUE(id.ok()) << id.error().ToString();
    SaveWith(memory);
  }
  /// As a worker would save it.
  void SaveWith(const std::string& memory) {
    config::Vm vm = Vm();
    vm.set_saved(!memory.empty());
    if (!memory.empty()) {
      ASSERT_TRUE(vmm::MakeFolders(vmm::FolderOf(vmm::StateFileOf(vm))).ok());
      // Others, as a worker's are: what is linked to a checkpoint stays.
      for (const std::string& file : vmm::SavedStateFilesOf(vm))
        ASSERT_TRUE(vmm::ReplaceFile(file, memory).ok());
    }
    ASSERT_TRUE(inventory->Store(vm).ok());
  }
  std::string MemoryOf(const config::Vm& vm) const {
    return vm.saved() ? vmm::ReadWholeFile(vmm::StateFileOf(vm)).value_or("(no file)") : "";
  }

  static const std::string& DiskOf(const config::Vm& vm) { return vm.disks(0).path(); }
  /// Marks a block of the present disk with a letter.
  void Write(uint64_t block, char letter) {
    const auto chain = virtdev::OpenChain(DiskOf(Vm()), false);
    ASSERT_TRUE(chain.ok()) << chain.error().ToString();
    const std::vector<uint8_t> bytes(4096, static_cast<uint8_t>(letter));
    ASSERT_TRUE(virtdev::WriteImage((*chain)->top(), block * kBlock, bytes).ok());
    ASSERT_TRUE((*chain)->Close().ok());
  }
  /// The letters of all blocks, '.' where there is none; the error where the disk cannot be read.
  static std::string ContentOf(const config::Vm& vm) {
    const auto chain = virtdev::OpenChain(DiskOf(vm), true);
    if (!chain.ok()) return chain.error().ToString();
    std::string letters;
    for (uint64_t block = 0; block < kBlocks; ++block) {
      std::vector<uint8_t> bytes(4096);
      const auto read = virtdev::ReadChain(**chain, block * kBlock, bytes);
      letters += !read.ok() ? '!' : bytes[4095] == 0 ? '.' : static_cast<char>(bytes[4095]);
    }
    return letters;
  }
  /// Image files that are there.
  std::vector<std::string> Images() const {
    std::vector<std::string> images;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      if (entry.path().extension() == ".vhdx" || entry.path().extension() == ".avhdx")
        images.push_back(entry.path().string());
    }
    return images;
  }

  vmm::Result<void> Finish(const vmm::Result<config::Job>& begun) {
    if (!begun.ok()) return begun.error();
    if (!Settle()) return vmm::Error(vmm::Code::kDeadlineExceeded, "a job does not end");
    const auto job = jobs->Get(begun->id());
    if (!job.ok()) return job.error();
    if (job->state() == config::JOB_DONE) return {};
    return vmm::Error(static_cast<vmm::Code>(job->error_code()), job->error());
  }
  vmm::Result<void> Create(const std::string& name) {
    vmm::Checkpoints::CreateOptions options;
    options.vm = Id();
    options.name = name;
    return Finish(checkpoints->Create(options, nullptr));
  }
  vmm::Result<void> Apply(const std::string& name) {
    return Finish(checkpoints->Apply(Id(), name, false, "", nullptr));
  }
  vmm::Result<void> Delete(const std::string& name, bool subtree) {
    return Finish(checkpoints->Delete(Id(), name, subtree, "", nullptr));
  }

  vmm::Result<void> Export(const std::string& to, const std::string& checkpoint = "") {
    vmm::Transfers::ExportOptions options;
    options.vm = Id();
    options.folder = to;
    options.checkpoint = checkpoint;
    return Finish(transfers->Export(options, nullptr));
  }
  /// A copy, or in place.
  vmm::Result<void> Import(const vmm::ImportOptions& options) {
    const auto imported = transfers->Import(options, false, "", nullptr);
    if (!imported.ok()) return imported.error();
    return imported->job ? Finish(*imported->job) : vmm::Result<void>();
  }
  /// By its name.
  config::Vm Named(const std::string& name) const {
    const auto id = inventory->Resolve(name);
    return id.ok() ? inventory->Get(*id)->config : config::Vm();
  }

  const std::string folder_;
  std::unique_ptr<vmm::Loop> loop;
  ImageFiles files;
  std::unique_ptr<vmm::Inventory> inventory;
  std::unique_ptr<vmm::Jobs> jobs;
  std::unique_ptr<vmm::Checkpoints> checkpoints;
  std::unique_ptr<vmm::Transfers> transfers;
};

/// A TestHost in a folder of its own, gone with the test.
class TestHostTest : public testing::Test {
 protected:
  explicit TestHostTest(const std::string& name) : folder_(tests::NewFastFolder(name)) {
    host_ = std::make_unique<TestHost>(folder_);
  }
  ~TestHostTest() override {
    host_.reset();
    std::filesystem::remove_all(folder_);
  }
  void Restart() {
    host_.reset();
    host_ = std::make_unique<TestHost>(folder_);
  }
  /// A checkpoint.
  config::Vm Named(const std::string& name) const {
    const vmm::CheckpointMap all = host_->All();
    return all.at(vmm::FindCheckpoint(all, name).value());
  }

  const std::string folder_;
  std::unique_ptr<TestHost> host_;
};

}  // namespace kvmbus::cmd
