// SPDX-License-Identifier: Apache-2.0
#include "vmm/saved_state/saved_state.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "vmm/hvs/hvs_reader.h"
#include "vmm/os/file.h"
#include "vmm/saved_state/ram_loader.h"
#include "vmm/saved_state/ram_saver.h"
#include "vmm/saved_state/ram_test_memory.h"

namespace kvmbus::vmm {
namespace {

constexpr uint64_t kRam = 16u << 20;

class SavedStateTest : public testing::Test {
 protected:
  SavedStateTest() : guest_(kRam) {
    std::string pattern = testing::TempDir() + "saved-XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    std::mt19937 random{11};
    guest_.WriteAtRandom(random, 700);
    machine_.vm_version = 0x602;
    machine_.devices = std::string(5000, 'd');
    machine_.fdt = "fdt";
  }
  ~SavedStateTest() override { std::filesystem::remove_all(folder_); }

  SavedStatePaths Paths(bool apart) const {
    return {folder_ + "/m/vm" + (apart ? ".vsv" : ".vmrs"), apart ? folder_ + "/m/vm.bin" : ""};
  }
  Result<void> Save(const SavedStatePaths& paths) {
    auto writer = TRY(SavedStateWriter::Create(paths, *guest_.memory));
    RamSaver saver(*guest_.memory, guest_, *writer, RamSaver::Options(), nullptr);
    TRY_VOID(saver.CopyLive());
    TRY_VOID(saver.HoldRest());
    TRY_VOID(saver.CopyRest());
    return writer->Publish(machine_);
  }
  void ExpectRestored(const SavedStatePaths& paths) {
    auto saved = SavedState::Open(paths, *guest_.memory);
    ASSERT_TRUE(saved.ok()) << saved.error().ToString();
    EXPECT_EQ(saved->machine.devices, machine_.devices);
    EXPECT_EQ(saved->machine.fdt, "fdt");
    EXPECT_EQ(saved->machine.vm_version, 0x602);
    ModelGuest restored(kRam);
    auto loader = RamLoader::Start(*restored.memory, std::move(saved->ram), RamLoader::Options(),
                                   [](const Error& error) { FAIL() << error.ToString(); });
    ASSERT_TRUE(loader.ok());
    (*loader)->Finish();
    EXPECT_EQ(restored.Content(), guest_.Content());
  }

  std::string folder_;
  ModelGuest guest_;
  SavedMachine machine_;
};

TEST_F(SavedStateTest, OneFileHasAll) {
  ASSERT_TRUE(Save(Paths(false)).ok());
  ExpectRestored(Paths(false));
  EXPECT_FALSE(std::filesystem::exists(Paths(false).state + ".new"));
}

TEST_F(SavedStateTest, OrTheMemoryIsApart) {
  ASSERT_TRUE(Save(Paths(true)).ok());
  EXPECT_EQ(std::filesystem::file_size(Paths(true).memory), kRam);
  ExpectRestored(Paths(true));
}

TEST_F(SavedStateTest, KeysAreThoseOfHyperV) {
  ASSERT_TRUE(Save(Paths(false)).ok());
  const Fd file = std::move(OpenFile(Paths(false).state, O_RDONLY)).value();
  HvsReader::Limits limits;
  limits.inline_bytes = 4096;
  const auto reader = HvsReader::Open(file.get(), limits);
  ASSERT_TRUE(reader.ok());
  const Key& root = reader->root();
  EXPECT_EQ(root.IntOr("savedstate/VmVersion", 0), 0x602);
  EXPECT_EQ(root.StringOr("savedstate/type", ""), "Normal");
  const Key* block = root.Find("savedstate/RamMemoryBlock0");
  ASSERT_NE(block, nullptr);
  EXPECT_EQ(std::get<KeyBytes>(block->value).bytes.size(), 48u);
  const Key* ram = root.Find("savedstate/RamBlock0");
  ASSERT_NE(ram, nullptr);
  EXPECT_EQ(std::get<FileObject>(ram->value).size, kRamBlockBytes);
}

TEST_F(SavedStateTest, WhatIsNotPublishedLeavesNothing) {
  { auto writer = SavedStateWriter::Create(Paths(false), *guest_.memory); }
  EXPECT_TRUE(std::filesystem::is_empty(folder_ + "/m"));
  EXPECT_EQ(SavedState::Open(Paths(false), *guest_.memory).error().code(), Code::kNotFound);
}

TEST_F(SavedStateTest, ANewOneReplacesTheOldOneWhenItIsWhole) {
  ASSERT_TRUE(Save(Paths(false)).ok());
  { auto writer = SavedStateWriter::Create(Paths(false), *guest_.memory); }
  ExpectRestored(Paths(false));
}

TEST_F(SavedStateTest, OtherMemoryIsRefused) {
  ASSERT_TRUE(Save(Paths(false)).ok());
  const ModelGuest other(kRam * 2);
  EXPECT_EQ(SavedState::Open(Paths(false), *other.memory).error().code(),
            Code::kFailedPrecondition);
}

TEST_F(SavedStateTest, AForeignSavedStateIsRefusedWithAReason) {
  const std::string path = folder_ + "/foreign.vmrs";
  const Fd file = std::move(OpenFile(path, O_RDWR | O_CREAT)).value();
  HvsWriter writer(file.get());
  Key root;
  root.Make("savedstate/VmVersion").value = int64_t{0x900};
  root.Make("savedstate/savedVM/partition_state").value = KeyBytes{"windows"};
  ASSERT_TRUE(writer.Finish(root).ok());
  const auto saved = SavedState::Open({path, ""}, *guest_.memory);
  ASSERT_FALSE(saved.ok());
  EXPECT_EQ(saved.error().code(), Code::kFailedPrecondition);
}

TEST_F(SavedStateTest, ATruncatedFileIsDamaged) {
  ASSERT_TRUE(Save(Paths(false)).ok());
  std::filesystem::resize_file(Paths(false).state, 3u << 20);
  EXPECT_EQ(SavedState::Open(Paths(false), *guest_.memory).error().code(), Code::kDataLoss);
  ASSERT_TRUE(Save(Paths(true)).ok());
  std::filesystem::resize_file(Paths(true).memory, 3u << 20);
  EXPECT_EQ(SavedState::Open(Paths(true), *guest_.memory).error().code(), Code::kDataLoss);
}

}  // namespace
}  // namespace kvmbus::vmm
