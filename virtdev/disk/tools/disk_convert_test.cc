// SPDX-License-Identifier: Apache-2.0
// Converting: killed at any moment, cancelled, and what is durable when it is done.
#include <gtest/gtest.h>

#include <filesystem>
#include <mutex>
#include <random>

#include "tests/fakes/crash_file.h"
#include "tests/fakes/killed_process.h"
#include "virtdev/disk/borrowed_file.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/tools/image_copy.h"
#include "virtdev/disk/tools/image_io.h"
#include "virtdev/disk/vhd/vhd_create.h"

namespace kvmbus::virtdev {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<uint8_t>;
using tests::CrashFile;
using tests::CrashMedium;

constexpr uint64_t kDisk = 12u << 20;

/// For several threads; what lies under it has one.
class LockedFile final : public BlockFile {
  template <typename Call>
  auto Locked(Call call) {
    std::lock_guard lock(mutex_);
    return call();
  }

 public:
  explicit LockedFile(CrashMedium& medium) : file_(medium) {}
  vmm::Result<uint64_t> Size() override {
    return Locked([&] { return file_.Size(); });
  }
  vmm::Result<void> Read(std::span<uint8_t> buffer, uint64_t offset) override {
    return Locked([&] { return file_.Read(buffer, offset); });
  }
  vmm::Result<void> Write(std::span<const uint8_t> buffer, uint64_t offset) override {
    return Locked([&] { return file_.Write(buffer, offset); });
  }
  vmm::Result<void> Flush() override {
    return Locked([&] { return file_.Flush(); });
  }
  vmm::Result<void> Resize(uint64_t bytes) override {
    return Locked([&] { return file_.Resize(bytes); });
  }
  vmm::Result<void> Zero(uint64_t offset, uint64_t length, bool keep_space) override {
    return Locked([&] { return file_.Zero(offset, length, keep_space); });
  }

 private:
  std::mutex mutex_;
  CrashFile file_;
};

class DiskConvertTest : public testing::TestWithParam<const char*> {
 protected:
  DiskConvertTest() : folder_(tests::NewFastFolder("disk-convert-test")) {
    source_ = folder_ + "/source.raw";
    target_ = folder_ + "/target." + GetParam();
    CreateDiskOptions options;
    options.format = "raw";
    options.size_bytes = kDisk;
    EXPECT_TRUE(CreateDisk(source_, options).ok());
    const auto image = OpenImage(source_, false).value();
    std::mt19937_64 random(11);
    for (uint64_t at = 0; at < kDisk; at += 4096 * (1 + random() % 60))
      EXPECT_TRUE(WriteImage(*image, at, Bytes(4096, static_cast<uint8_t>(random() | 1))).ok());
    content_ = ContentOf(*image);
  }
  ~DiskConvertTest() override { fs::remove_all(folder_); }

  static Bytes ContentOf(Image& image) {
    Bytes bytes(image.info().size_bytes);
    EXPECT_TRUE(ReadImage(image, 0, bytes).ok());
    return bytes;
  }
  vmm::Result<void> Convert(const Progress& progress = {}) {
    CreateDiskOptions options;
    options.format = GetParam();
    return ConvertDisk(source_, target_, options, progress);
  }
  void ExpectWhole() {
    const auto image = OpenImage(target_, true);
    ASSERT_TRUE(image.ok()) << image.error().ToString();
    EXPECT_TRUE(ContentOf(**image) == content_);
    if (std::string(GetParam()) == "raw") return;
    const auto findings = CheckDisk(target_);
    ASSERT_TRUE(findings.ok());
    for (const Finding& finding : *findings) ADD_FAILURE() << finding.text;
  }

  std::string folder_, source_, target_;
  Bytes content_;
};

TEST_P(DiskConvertTest, KilledAtAnyMomentThereIsNoTargetOrAWholeOne) {
  const tests::Traced whole = tests::RunUntil(~uint64_t{0}, [this] { return Convert().ok(); });
  if (!whole.traced) GTEST_SKIP() << "a process may not be traced here";
  ASSERT_TRUE(whole.ended_well);
  ExpectWhole();
  fs::remove(target_);
  // Every so often, and at each of the last ones: flush, rename, sync.
  std::vector<uint64_t> limits;
  for (uint64_t at = 1; at < whole.calls; at += 1 + whole.calls / 30) limits.push_back(at);
  for (uint64_t at = whole.calls - std::min<uint64_t>(whole.calls, 25); at < whole.calls; ++at)
    limits.push_back(at);
  int killed = 0;
  for (const uint64_t limit : limits) {
    SCOPED_TRACE(fmt::format("system call {} of about {}", limit, whole.calls));
    const tests::Traced run = tests::RunUntil(limit, [this] { return Convert().ok(); });
    ASSERT_TRUE(run.killed || run.ended_well);
    killed += run.killed ? 1 : 0;
    EXPECT_TRUE(run.killed || fs::exists(target_));
    if (!fs::exists(target_)) continue;
    ASSERT_NO_FATAL_FAILURE(ExpectWhole());
    fs::remove(target_);
  }
  EXPECT_GT(killed, 30);
  ASSERT_TRUE(Convert().ok()) << "what a killed one has left is in nobody's way";
  ExpectWhole();
}

TEST_P(DiskConvertTest, ACancelLeavesNothing) {
  const auto cancelled = Convert([](uint64_t done, uint64_t total) {
    EXPECT_LE(done, total);
    return false;
  });
  ASSERT_FALSE(cancelled.ok());
  EXPECT_EQ(cancelled.error().code(), vmm::Code::kCancelled);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1) << "the source alone";
}

TEST_P(DiskConvertTest, WhatItReturnsWithIsDurable) {
  CrashMedium medium;
  LockedFile file(medium);
  CreateDiskOptions options;
  options.size_bytes = kDisk;
  ImageFormat format = ImageFormat::kRaw;
  if (std::string(GetParam()) == "vhdx") {
    format = ImageFormat::kVhdx;
    ASSERT_TRUE(FormatVhdx(file, options, vmm::Guid::Random()).ok());
  } else if (std::string(GetParam()) == "vhd") {
    format = ImageFormat::kVhd;
    ASSERT_TRUE(FormatVhd(file, options, vmm::Guid::Random()).ok());
  } else {
    ASSERT_TRUE(file.Resize(kDisk).ok());
  }
  const auto from = OpenChain(source_, true).value();
  const auto to = OpenImageFile(std::make_unique<BorrowedFile>(file), format, false).value();
  ASSERT_TRUE(CopyDisk(*from, *to, {}).ok());
  CrashMedium after(medium.durable);
  const auto found = OpenImageFile(std::make_unique<CrashFile>(after), format, true);
  ASSERT_TRUE(found.ok());
  EXPECT_TRUE(ContentOf(**found) == content_);
}

INSTANTIATE_TEST_SUITE_P(Formats, DiskConvertTest, testing::Values("raw", "vhd", "vhdx"));

}  // namespace
}  // namespace kvmbus::virtdev
