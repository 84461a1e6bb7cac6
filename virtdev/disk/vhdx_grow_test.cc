// SPDX-License-Identifier: Apache-2.0
// Growing a disk: within its BAT's region and past it, and the power cut at any moment of it.
#include "virtdev/disk/vhdx_grow.h"

#include <optional>

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

/// A last block that is not whole, and data up to its end.
CrashMedium NewDisk() {
  CreateDiskOptions options = SmallDisk();
  options.size_bytes = kDiskBytes - 3 * kUnit;
  CrashMedium medium = NewMedium(options);
  auto image = Open(medium);
  Write(*image, 0, Bytes(kUnit, 1));
  Write(*image, options.size_bytes - kUnit, Bytes(kUnit, 2));
  EXPECT_TRUE(image->Close().ok());
  image.reset();
  Settle(medium);
  return medium;
}

void ExpectContent(CrashMedium& medium, uint64_t size) {
  const auto image = Open(medium, true);
  ASSERT_TRUE(image);
  ASSERT_EQ(image->info().size_bytes, size);
  const uint64_t old = kDiskBytes - 3 * kUnit;
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
  EXPECT_TRUE(Grow(medium, kDiskBytes - 3 * kUnit).ok()) << "as it is";
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

TEST(VhdxGrowTest, AnyMomentLeavesTheOldSizeOrTheNew) {
  for (const uint64_t size : {kNear, kFar}) {
    uint64_t events = 1;
    bool old_seen = false, new_seen = false;
    constexpr uint64_t kSeeds = 2;
    for (uint64_t run = 0; run < events * kSeeds && !HasFailure(); ++run) {
      const uint64_t cut_at = run / kSeeds;
      SCOPED_TRACE(fmt::format("{}: cut at {} of {}, run {}", size, cut_at, events, run));
      CrashMedium medium = NewDisk();
      std::mt19937_64 random(run);
      std::optional<SparseBytes> cut;
      uint64_t event = 0;
      medium.on_event = [&] {
        if (event++ == cut_at) cut = medium.Crash(random);
      };
      ASSERT_TRUE(Grow(medium, size).ok());
      medium.on_event = nullptr;
      events = std::max(events, event);
      if (!cut) continue;
      CrashMedium after(*cut);
      const auto image = Open(after, true);
      ASSERT_TRUE(image);
      const uint64_t found = image->info().size_bytes;
      old_seen = old_seen || found != size;
      new_seen = new_seen || found == size;
      ASSERT_NO_FATAL_FAILURE(ExpectContent(after, found == size ? size : kDiskBytes - 3 * kUnit));
      ASSERT_TRUE(Grow(after, size).ok());
      ASSERT_NO_FATAL_FAILURE(ExpectContent(after, size));
    }
    EXPECT_TRUE(old_seen && new_seen);
  }
}

}  // namespace
}  // namespace kvmbus::virtdev
