// SPDX-License-Identifier: Apache-2.0
// Growing a disk: within its BAT's region and past it, and the power cut at any moment of it.
#include "virtdev/disk/vhdx_grow.h"

#include "tests/fakes/power_cuts.h"
#include "virtdev/disk/vhdx_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx_test;

constexpr uint64_t kNear = 40u << 20;             // fits the region of 1 MiB
constexpr uint64_t kFar = (uint64_t{200} << 30);  // 200 Ki blocks do not

vmm::Result<void> Grow(CrashMedium& medium, uint64_t bytes) {
  const vhdx::VhdxFile vhdx = TRY(vhdx::OpenVhdxFile(std::make_unique<CrashFile>(medium), false));
  return vhdx::GrowDisk(vhdx, bytes);
}

constexpr uint64_t kOld = kDiskBytes - 3 * kUnit;  // a last block that is not whole

/// Data up to its end.
CrashMedium NewDisk(uint64_t size = kOld) {
  CreateDiskOptions options = SmallDisk();
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

TEST(VhdxGrowTest, WhatWasThereStaysAndTheRestIsZeroes) {
  for (const uint64_t size : {kDiskBytes, kNear, kFar}) {
    SCOPED_TRACE(size);
    CrashMedium medium = NewDisk();
    const vmm::Guid identity = Open(medium, true)->identity();
    const auto grown = Grow(medium, size);
    ASSERT_TRUE(grown.ok()) << grown.error().ToString();
    ASSERT_NO_FATAL_FAILURE(ExpectContent(medium, size));
    EXPECT_NE(Open(medium, true)->identity(), identity) << "a guest sees another disk";
    auto image = Open(medium);
    Write(*image, size - kUnit, Bytes(kUnit, 3));
    ASSERT_TRUE(image->Close().ok());
    EXPECT_EQ(Read(*Open(medium, true), size - kUnit, kUnit), Bytes(kUnit, 3));
    EXPECT_EQ(Complaints(medium), "");
  }
}

TEST(VhdxGrowTest, StepByStep) {
  CrashMedium medium = NewDisk();
  for (uint64_t size = kNear; size <= (uint64_t{2} << 40); size *= 3)
    ASSERT_TRUE(Grow(medium, size).ok());
  EXPECT_EQ(Complaints(medium), "");
}

TEST(VhdxGrowTest, WhatCannotBeIsRefused) {
  CrashMedium medium = NewDisk();
  const SparseBytes before = medium.now;
  EXPECT_FALSE(Grow(medium, 1u << 20).ok()) << "smaller";
  EXPECT_FALSE(Grow(medium, kNear + 1).ok()) << "no whole sector";
  EXPECT_FALSE(Grow(medium, uint64_t{65} << 40).ok()) << "beyond the format";
  EXPECT_TRUE(Grow(medium, kOld).ok()) << "as it is";
  EXPECT_TRUE(medium.now == before);
  CrashMedium fixed = NewMedium(SmallDisk(true));
  EXPECT_EQ(Grow(fixed, kNear).error().code(), vmm::Code::kUnimplemented);
}

TEST(VhdxGrowTest, GarbageBehindTheBatDoesNotBecomeBlocks) {
  CrashMedium medium = NewDisk();
  PokeBat(medium, 30, (uint64_t{77} << 20) | 6);
  ASSERT_TRUE(Grow(medium, kNear).ok());
  ASSERT_NO_FATAL_FAILURE(ExpectContent(medium, kNear));
}

// Each single write that is lost before a flush counts: a BAT that has moved must be durable before
// anything leads to it.
TEST(VhdxGrowTest, AnyMomentLeavesTheOldSizeOrTheNew) {
  for (const uint64_t size : {kNear, kFar}) {
    // Where there is nothing behind the end, a BAT that moves is the only reason for a flush.
    const uint64_t old = size == kFar ? kDiskBytes : kOld;
    CrashMedium medium = NewDisk(old);
    const auto cuts = tests::CutsOf(
        medium, {}, [size](CrashMedium& whole) { ASSERT_TRUE(Grow(whole, size).ok()); });
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
      ASSERT_TRUE(Grow(after, size).ok());
      ASSERT_NO_FATAL_FAILURE(ExpectContent(after, size, old));
    }
    EXPECT_TRUE(old_seen && new_seen);
  }
}

// An image whose last block holds something behind the disk's end, as a cut shrink leaves it.
TEST(VhdxGrowTest, WhatLiesBehindTheEndIsNotSeen) {
  CrashMedium medium = NewDisk();
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

}  // namespace
}  // namespace kvmbus::virtdev
