// SPDX-License-Identifier: Apache-2.0
#include "vmm/saved_state/saved_state.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "vmm/hvs/hvs_check.h"
#include "vmm/hvs/hvs_reader.h"
#include "vmm/hvs/hvs_writer.h"
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
  Result<void> Save(const SavedStatePaths& paths, bool compress = false) {
    auto writer = TRY(SavedStateWriter::Create(paths, *guest_.memory, compress));
    RamSaver::Options options;
    options.compress = compress;
    RamSaver saver(*guest_.memory, guest_, *writer, options, nullptr);
    TRY_VOID(saver.CopyLive());
    if (compress) guest_.WritePage(3, 77);  // a compressed block is given up
    TRY_VOID(saver.HoldRest());
    TRY_VOID(saver.CopyRest());
    return writer->Publish(machine_);
  }
  /// The container's keys, to be changed and written anew.
  Key ReadTree(const SavedStatePaths& paths) {
    const Fd file = std::move(OpenFile(paths.state, O_RDONLY)).value();
    HvsReader::Limits limits;
    limits.inline_bytes = kRamBlockBytes;
    return HvsReader::Open(file.get(), limits).value().root();
  }
  Error OpenOf(Key tree) {
    const std::string path = folder_ + "/changed.vmrs";
    const Fd file = std::move(OpenFile(path, O_RDWR | O_CREAT | O_TRUNC)).value();
    HvsWriter writer(file.get());
    for (Key& block : tree.Make("savedstate/kvmbus/ram").children) {  // objects, however small
      if (const auto* bytes = std::get_if<KeyBytes>(&block.value))
        block.value = writer.Append(bytes->bytes).value();
    }
    EXPECT_TRUE(writer.Finish(tree).ok());
    auto saved = SavedState::Open({path, ""}, *guest_.memory);
    return saved.ok() ? Error(Code::kOk, "") : saved.error();
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

TEST_F(SavedStateTest, ACompressedOneIsRestoredAllTheSame) {
  ASSERT_TRUE(Save(Paths(false)).ok());
  const auto plain = std::filesystem::file_size(Paths(false).state);
  const auto saved = Save(Paths(false), true);
  ASSERT_TRUE(saved.ok()) << saved.error().ToString();
  EXPECT_LT(std::filesystem::file_size(Paths(false).state), plain / 2);
  ExpectRestored(Paths(false));
  const Fd file = std::move(OpenFile(Paths(false).state, O_RDONLY)).value();
  EXPECT_TRUE(CheckHvs(file.get()).empty()) << "a container as any";
  const Key tree = ReadTree(Paths(false));
  EXPECT_NE(tree.Find("savedstate/RamBlock0"), nullptr);
  EXPECT_EQ(tree.Find("savedstate/kvmbus/ram/RamBlock0"), nullptr);
  EXPECT_NE(tree.Find("savedstate/kvmbus/ram/RamBlock1"), nullptr);
  EXPECT_EQ(tree.IntOr("savedstate/kvmbus/format", 0), 2) << "an older program must not take it";
}

TEST_F(SavedStateTest, OtherCompressionsAreRefused) {
  ASSERT_TRUE(Save(Paths(false), true).ok());
  Key tree = ReadTree(Paths(false));
  EXPECT_EQ(OpenOf(tree).code(), Code::kOk);
  tree.Make("savedstate/kvmbus/ram/compression").value = "lzma";
  const Error error = OpenOf(tree);
  EXPECT_EQ(error.code(), Code::kUnimplemented);
  EXPECT_NE(error.ToString().find("'lzma'"), std::string::npos);
  EXPECT_EQ(Save(Paths(true), true).error().code(), Code::kFailedPrecondition)
      << "the .bin of 5.0 is as it is";
}

TEST_F(SavedStateTest, CompressedBlocksThatCannotBeAreRefused) {
  ASSERT_TRUE(Save(Paths(false), true).ok());
  const Key tree = ReadTree(Paths(false));
  const auto changed = [&](const std::string& name, const Key::Value& value) {
    Key copy = tree;
    copy.Make("savedstate/kvmbus/ram/" + name).value = value;
    return OpenOf(copy).code();
  };
  const KeyBytes some{std::string(5000, 'x')};
  EXPECT_EQ(changed("RamBlock16", some), Code::kDataLoss) << "there is none";
  EXPECT_EQ(changed("RamBlock0", some), Code::kDataLoss) << "it is there as it is, too";
  EXPECT_EQ(changed("RamBlock", some), Code::kDataLoss);
  EXPECT_EQ(changed("RamBlock1", int64_t{5}), Code::kDataLoss);
  EXPECT_EQ(changed("RamBlock1", KeyBytes{std::string(kRamBlockBytes, 'x')}), Code::kDataLoss);
  ASSERT_EQ(changed("RamBlock1", some), Code::kOk) << "its content is looked at when it is loaded";
  auto saved = SavedState::Open({folder_ + "/changed.vmrs", ""}, *guest_.memory);
  ModelGuest restored(kRam);
  RamLoader::Options options;
  options.lazy = false;
  const auto loader =
      RamLoader::Start(*restored.memory, std::move(saved->ram), options, [](const Error&) {});
  ASSERT_FALSE(loader.ok());
  EXPECT_EQ(loader.error().code(), Code::kDataLoss);
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
