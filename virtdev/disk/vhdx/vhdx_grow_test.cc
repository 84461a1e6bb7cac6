// SPDX-License-Identifier: Apache-2.0
// Growing a disk: within its BAT's region and past it, and the power cut at any moment of it.
#include "virtdev/disk/vhdx/vhdx_grow.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/fakes/power_cuts.h"
#include "virtdev/disk/vhdx/vhdx_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx_test;

constexpr uint64_t kNear = 40u << 20;             // fits the region of 1 MiB
constexpr uint64_t kPages = 1200u << 20;          // of the region
constexpr uint64_t kFar = (uint64_t{200} << 30);  // 200 Ki blocks do not

vmm::Result<void> Grow(CrashMedium& medium, uint64_t bytes) {
  const vhdx::VhdxFile vhdx = TRY(vhdx::OpenVhdxFile(std::make_unique<CrashFile>(medium), false));
  return vhdx::GrowDisk(vhdx, bytes);
}

constexpr uint64_t kOld = kDiskBytes - 3 * kUnit;  // a last block that is not whole

/// Data up to its end.
CrashMedium NewDisk(bool fixed, uint64_t size = kOld) {
  CreateDiskOptions options = SmallDisk(fixed);
  options.size_bytes = size;
  CrashMedium medium = NewMedium(options);
  auto image = Open(medium);
  Write(*image, 0, Bytes(kUnit, 1));
  Write(*image, options.size_bytes - kUnit, Bytes(kUnit, 2));
  EXPECT_TRUE(image->Close().ok());
  image.reset();
  Settle(medium);
  return medium;
}

void ExpectContent(CrashMedium& medium, uint64_t size, uint64_t old = kOld) {
  const auto image = Open(medium, true);
  ASSERT_TRUE(image);
  ASSERT_EQ(image->info().size_bytes, size);
  Bytes wanted(kDiskBytes, 0);
  std::fill_n(wanted.begin(), kUnit, 1);
  std::fill_n(wanted.begin() + static_cast<ptrdiff_t>(old - kUnit), kUnit, 2);
  wanted.resize(std::min<uint64_t>(wanted.size(), size));
  EXPECT_TRUE(Read(*image, 0, wanted.size()) == wanted);
  EXPECT_EQ(Complaints(medium), "");
}

bool AllAllocated(CrashMedium& medium) {
  const auto image = Open(medium, true);
  std::vector<ImageExtent> extents;
  image->MapLayer(0, image->info().size_bytes, &extents);
  return std::all_of(extents.begin(), extents.end(), [](const ImageExtent& extent) {
    return extent.kind == ImageExtent::Kind::kData;
  });
}

class VhdxGrowTest : public testing::TestWithParam<bool> {
 protected:
  static bool IsFixed() { return GetParam(); }
};

TEST_P(VhdxGrowTest, WhatWasThereStaysAndTheRestIsZeroes) {
  for (const uint64_t size : {kDiskBytes, kNear, kPages, kFar}) {
    SCOPED_TRACE(size);
    CrashMedium medium = NewDisk(IsFixed());
    const vmm::Guid identity = Open(medium, true)->identity();
    const auto grown = Grow(medium, size);
    ASSERT_TRUE(grown.ok()) << grown.error().ToString();
    ASSERT_NO_FATAL_FAILURE(ExpectContent(medium, size));
    EXPECT_NE(Open(medium, true)->identity(), identity) << "a guest sees another disk";
    if (IsFixed()) {
      EXPECT_TRUE(AllAllocated(medium));
    }
    auto image = Open(medium);
    Write(*image, size - kUnit, Bytes(kUnit, 3));
    ASSERT_TRUE(image->Close().ok());
    EXPECT_EQ(Read(*Open(medium, true), size - kUnit, kUnit), Bytes(kUnit, 3));
    EXPECT_EQ(Complaints(medium), "");
  }
}

TEST_P(VhdxGrowTest, StepByStep) {
  CrashMedium medium = NewDisk(IsFixed());
  const uint64_t last = uint64_t{IsFixed() ? 300u : 2048u} << 30;
  for (uint64_t size = kNear; size <= last; size *= 3) ASSERT_TRUE(Grow(medium, size).ok());
  EXPECT_EQ(Complaints(medium), "");
  if (IsFixed()) {
    EXPECT_TRUE(AllAllocated(medium));
  }
}

TEST_P(VhdxGrowTest, WhatCannotBeIsRefused) {
  CrashMedium medium = NewDisk(IsFixed());
  const SparseBytes before = medium.now;
  EXPECT_FALSE(Grow(medium, 1u << 20).ok()) << "smaller";
  EXPECT_FALSE(Grow(medium, kNear + 1).ok()) << "no whole sector";
  EXPECT_FALSE(Grow(medium, uint64_t{65} << 40).ok()) << "beyond the format";
  EXPECT_TRUE(Grow(medium, kOld).ok()) << "as it is";
  EXPECT_TRUE(medium.now == before);
}

TEST_P(VhdxGrowTest, GarbageBehindTheBatDoesNotBecomeBlocks) {
  CrashMedium medium = NewDisk(IsFixed());
  PokeBat(medium, 30, (uint64_t{77} << 20) | 6);
  ASSERT_TRUE(Grow(medium, kNear).ok());
  ASSERT_NO_FATAL_FAILURE(ExpectContent(medium, kNear));
}

// The old size stays, all that was added for the new one goes, and a smaller one works.
TEST(VhdxGrowFixedTest, WithoutSpaceOnTheHostNothingChanges) {
  for (const uint64_t size : {kNear, kFar}) {
    SCOPED_TRACE(size);
    CrashMedium medium = NewDisk(true);
    const uint64_t length = medium.now.size();
    medium.most_bytes = length + 2 * kBlock;
    const auto grown = Grow(medium, size);
    ASSERT_FALSE(grown.ok());
    EXPECT_EQ(grown.error().sys_errno(), ENOSPC);
    EXPECT_EQ(medium.now.size(), length);
    ASSERT_NO_FATAL_FAILURE(ExpectContent(medium, kOld));
    auto image = Open(medium);
    ASSERT_FALSE(image->Grow(size).ok());
    EXPECT_EQ(medium.now.size(), length);
    ASSERT_TRUE(image->Grow(kDiskBytes + 2 * kBlock).ok());
    ASSERT_TRUE(image->Close().ok());
    ASSERT_NO_FATAL_FAILURE(ExpectContent(medium, kDiskBytes + 2 * kBlock));
  }
}

/// The medium as a sparse file.
void WriteFile(const CrashMedium& medium, const std::string& path) {
  std::ofstream file(path, std::ios::binary);
  for (uint64_t at = 0; (at = medium.now.NextFrom(at)) != ~uint64_t{0}; ++at) {
    const Bytes sector = medium.now.Read(at * SparseBytes::kSector, SparseBytes::kSector);
    file.seekp(static_cast<std::streamoff>(at * SparseBytes::kSector));
    file.write(reinterpret_cast<const char*>(sector.data()),
               static_cast<std::streamsize>(sector.size()));
  }
  file.close();
  std::filesystem::resize_file(path, medium.now.size());
}

// A BAT that has moved and leads to 200 GiB of blocks: more than hosts of tests have.
TEST(VhdxGrowFixedTest, QemuReadsABatThatHasMoved) {
  if (std::system("command -v qemu-img >/dev/null && command -v qemu-io >/dev/null") != 0)
    GTEST_SKIP() << "qemu-img and qemu-io are not installed";
  CrashMedium medium = NewDisk(true);
  ASSERT_TRUE(Grow(medium, kFar).ok());
  char folder[] = "/tmp/vhdx-grow-test-XXXXXX";
  const std::string path = std::string(::mkdtemp(folder)) + "/disk.vhdx";
  WriteFile(medium, path);
  const auto shell = [](const std::string& command) {
    return std::system(("(" + command + ") >/dev/null 2>&1").c_str());
  };
  EXPECT_EQ(shell("qemu-img check " + path), 0);
  EXPECT_EQ(shell(fmt::format("qemu-img info {} | grep -q '({} bytes)'", path, kFar)), 0);
  const std::string reads = fmt::format(
      "-c 'read -P 1 0 4k' -c 'read -P 2 {} 4k' -c 'read -P 0 {} 1M' -c 'read -P 0 {} 1M'",
      kOld - kUnit, kOld, kFar - kBlock);
  EXPECT_EQ(shell("! qemu-io -r -f vhdx " + reads + " " + path + " | grep -qi 'fail'"), 0);
  std::filesystem::remove_all(folder);
}

// A cut growth leaves blocks that nothing leads to; the next one does not put its own behind them.
TEST(VhdxGrowFixedTest, WhatACutGrowthHasLeftIsNotKept) {
  CrashMedium medium = NewDisk(true);
  CrashMedium whole = medium;
  ASSERT_TRUE(Grow(whole, kNear).ok());
  medium.now.Resize(medium.now.size() + 20 * kBlock);
  medium.now.Write(Bytes(20 * kBlock, 0x5a), medium.now.size() - 20 * kBlock);
  ASSERT_TRUE(Grow(medium, kNear).ok());
  EXPECT_EQ(medium.now.size(), whole.now.size());
  ASSERT_NO_FATAL_FAILURE(ExpectContent(medium, kNear));
}

// Each single write that is lost before a flush counts: a BAT that has moved must be durable before
// anything leads to it, and so must a fixed disk's new entries.
TEST_P(VhdxGrowTest, AnyMomentLeavesTheOldSizeOrTheNew) {
  for (const uint64_t size : {kNear, kPages, kFar}) {
    // Where there is nothing behind the end, these are the only reasons for a flush.
    const uint64_t old = size == kNear ? kOld : kDiskBytes;
    CrashMedium medium = NewDisk(IsFixed(), old);
    // A fixed disk's 200 Ki blocks are 400 pages of the BAT, much alike.
    const tests::CutPlan plan =
        IsFixed() && size == kFar ? tests::CutPlan{4, 16, 20, 101} : tests::CutPlan{};
    const auto cuts = tests::CutsOf(
        medium, plan, [size](CrashMedium& whole) { ASSERT_TRUE(Grow(whole, size).ok()); });
    bool old_seen = false, new_seen = false;
    for (size_t i = 0; i < cuts.size() && !HasFailure(); ++i) {
      SCOPED_TRACE(fmt::format("{}: cut {} of {}", size, i, cuts.size()));
      CrashMedium after(cuts[i]);
      const auto image = Open(after, true);
      ASSERT_TRUE(image);
      const uint64_t found = image->info().size_bytes;
      old_seen = old_seen || found != size;
      new_seen = new_seen || found == size;
      ASSERT_NO_FATAL_FAILURE(ExpectContent(after, found == size ? size : old, old));
      if (IsFixed()) {
        ASSERT_TRUE(AllAllocated(after));
      }
      ASSERT_TRUE(Grow(after, size).ok());
      ASSERT_NO_FATAL_FAILURE(ExpectContent(after, size, old));
    }
    EXPECT_TRUE(old_seen && new_seen);
  }
}

// An image whose last block holds something behind the disk's end, as a cut shrink leaves it.
TEST_P(VhdxGrowTest, WhatLiesBehindTheEndIsNotSeen) {
  CrashMedium medium = NewDisk(IsFixed());
  const uint64_t place = PeekBat(medium, kDiskBytes / kBlock - 1) & vhdx::kOffsetMask;
  medium.now.Write(Bytes(3 * kUnit, 0x5a), place + kBlock - 3 * kUnit);
  const auto cuts =
      tests::CutsOf(medium, {}, [](CrashMedium& whole) { ASSERT_TRUE(Grow(whole, kNear).ok()); });
  for (const SparseBytes& cut : cuts) {
    CrashMedium after(cut);
    const uint64_t found = Open(after, true)->info().size_bytes;
    ASSERT_NO_FATAL_FAILURE(ExpectContent(after, found));
  }
  ASSERT_NO_FATAL_FAILURE(ExpectContent(medium, kNear));
}

INSTANTIATE_TEST_SUITE_P(DynamicAndFixed, VhdxGrowTest, testing::Bool());

}  // namespace
}  // namespace kvmbus::virtdev
