// SPDX-License-Identifier: Apache-2.0
// Shrinking a disk: what stays, what goes, and the power cut at any moment of it.
#include "virtdev/disk/vhdx/vhdx_shrink.h"

#include "tests/fakes/power_cuts.h"
#include "virtdev/disk/vhdx/vhdx_grow.h"
#include "virtdev/disk/vhdx/vhdx_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx_test;

constexpr uint64_t kSmall = 5 * kBlock + 3 * kUnit;  // within a block

vmm::Result<void> Shrink(CrashMedium& medium, uint64_t bytes) {
  const vhdx::VhdxFile vhdx = TRY(vhdx::OpenVhdxFile(std::make_unique<CrashFile>(medium), false));
  return vhdx::ShrinkDisk(vhdx, bytes);
}
vmm::Result<void> Grow(CrashMedium& medium, uint64_t bytes) {
  const vhdx::VhdxFile vhdx = TRY(vhdx::OpenVhdxFile(std::make_unique<CrashFile>(medium), false));
  return vhdx::GrowDisk(vhdx, bytes);
}

uint64_t FileBytes(CrashMedium& medium) { return CrashFile(medium).Size().value(); }

/// A unit in each block, those behind the cut first in the file, and one more block unmapped.
CrashMedium NewDisk(bool fixed = false) {
  CrashMedium medium = NewMedium(SmallDisk(fixed));
  auto image = Open(medium);
  for (uint64_t block = kDiskBytes / kBlock; block-- > 0;) {
    for (uint64_t unit = 0; unit < 6; ++unit)
      Write(*image, block * kBlock + unit * kUnit, Bytes(kUnit, static_cast<uint8_t>(block + 1)));
  }
  EXPECT_TRUE(image->Unmap(9 * kBlock, kBlock).ok());
  EXPECT_TRUE(image->Close().ok());
  image.reset();
  Settle(medium);
  return medium;
}

void ExpectContent(CrashMedium& medium, uint64_t size, uint64_t kept, bool fixed = false) {
  const auto image = Open(medium, true);
  ASSERT_TRUE(image);
  ASSERT_EQ(image->info().size_bytes, size);
  Bytes wanted(size, 0);
  for (uint64_t at = 0; at < kept; at += kUnit) {
    const uint64_t block = at / kBlock;
    if (at % kBlock < 6 * kUnit && (block != 9 || fixed))
      std::fill_n(wanted.begin() + static_cast<ptrdiff_t>(at), kUnit,
                  static_cast<uint8_t>(block + 1));
  }
  EXPECT_TRUE(Read(*image, 0, size) == wanted);
  EXPECT_EQ(Complaints(medium), "");
}

TEST(VhdxShrinkTest, WhatIsInFrontOfTheEndStays) {
  for (const bool fixed : {false, true}) {
    for (const uint64_t size : {kDiskBytes - kUnit, 10 * kBlock, kSmall, kUnit}) {
      SCOPED_TRACE(fmt::format("{} {}", fixed, size));
      CrashMedium medium = NewDisk(fixed);
      const vmm::Guid identity = Open(medium, true)->identity();
      const auto shrunk = Shrink(medium, size);
      ASSERT_TRUE(shrunk.ok()) << shrunk.error().ToString();
      ASSERT_NO_FATAL_FAILURE(ExpectContent(medium, size, size, fixed));
      EXPECT_NE(Open(medium, true)->identity(), identity) << "a guest sees another disk";
      if (fixed) continue;
      // What comes back later is zeroes, and takes the space that was given up.
      ASSERT_TRUE(Grow(medium, kDiskBytes).ok());
      ASSERT_NO_FATAL_FAILURE(ExpectContent(medium, kDiskBytes, size));
      const uint64_t length = FileBytes(medium);
      auto image = Open(medium);
      Write(*image, kDiskBytes - kUnit, Bytes(kUnit, 3));
      ASSERT_TRUE(image->Close().ok());
      EXPECT_EQ(FileBytes(medium), std::max(length, (4 + 1 + size / kBlock) * kBlock));
      EXPECT_EQ(Complaints(medium), "");
    }
  }
}

TEST(VhdxShrinkTest, TheFileGetsShorterWhereItsEndIsFree) {
  CrashMedium medium = NewDisk(true);
  ASSERT_TRUE(Shrink(medium, 5 * kBlock).ok());
  EXPECT_EQ(FileBytes(medium), (4 + 5) * kBlock);
}

TEST(VhdxShrinkTest, WhatCannotBeIsRefused) {
  CrashMedium medium = NewDisk();
  const SparseBytes before = medium.now;
  EXPECT_FALSE(Shrink(medium, 0).ok());
  EXPECT_FALSE(Shrink(medium, kSmall + 1).ok()) << "no whole sector";
  EXPECT_FALSE(Shrink(medium, kDiskBytes + kUnit).ok()) << "larger";
  EXPECT_TRUE(Shrink(medium, kDiskBytes).ok()) << "as it is";
  EXPECT_TRUE(medium.now == before);
  CrashMedium child = NewChild(medium);
  EXPECT_EQ(Shrink(child, kSmall).error().code(), vmm::Code::kInvalidArgument);
}

/// Every cut of it leaves the old size with all that was there, or the new one with all that stays,
/// and what is done again after it ends as it would have.
void CutAtAnyMoment(const CrashMedium& disk, uint64_t old_size, uint64_t size) {
  CrashMedium medium = disk;
  const auto cuts = tests::CutsOf(medium, {12, 24, 40, 29}, [size](CrashMedium& whole) {
    const auto shrunk = Shrink(whole, size);
    ASSERT_TRUE(shrunk.ok()) << shrunk.error().ToString();
  });
  ASSERT_GT(cuts.size(), 60u);
  int old_seen = 0, new_seen = 0;
  for (const SparseBytes& cut : cuts) {
    CrashMedium after(cut);
    const auto image = Open(after, true);
    ASSERT_TRUE(image);
    const uint64_t found = image->info().size_bytes;
    ++(found == size ? new_seen : old_seen);
    ASSERT_TRUE(found == size || found == old_size);
    ASSERT_EQ(Complaints(after), "");
    if (old_size == kDiskBytes) {
      ASSERT_NO_FATAL_FAILURE(ExpectContent(after, found, found));
      // The log replays in place, too; what grows again holds zeroes.
      ASSERT_TRUE(Grow(after, old_size).ok());
      ASSERT_NO_FATAL_FAILURE(ExpectContent(after, old_size, found));
    }
    ASSERT_TRUE(Shrink(after, size).ok());
    ASSERT_EQ(Complaints(after), "");
  }
  EXPECT_GT(old_seen, 5);
  EXPECT_GT(new_seen, 5);
}

TEST(VhdxShrinkTest, AnyMomentLeavesTheOldSizeOrTheNew) {
  CutAtAnyMoment(NewDisk(), kDiskBytes, kSmall);
}

// More pages of the BAT than one log entry takes.
TEST(VhdxShrinkTest, AnyMomentOfALongOne) {
  CreateDiskOptions options = SmallDisk();
  options.size_bytes = uint64_t{80} << 30;
  CrashMedium medium = NewMedium(options);
  for (uint64_t page = 1; page < 140; ++page) PokeBat(medium, page * 512 + 200, 3);  // unmapped
  Settle(medium);
  CutAtAnyMoment(medium, options.size_bytes, kDiskBytes);
  ASSERT_TRUE(Shrink(medium, kDiskBytes).ok());
  for (uint64_t page = 1; page < 140; ++page) ASSERT_EQ(PeekBat(medium, page * 512 + 200), 0u);
}

// More entries than the log holds at once: each of them leaves alone what the last one leads to.
TEST(VhdxShrinkTest, AnyMomentOfOneThatGoesRoundTheLog) {
  CreateDiskOptions options = SmallDisk();
  options.size_bytes = uint64_t{200} << 30;
  CrashMedium medium = NewMedium(options);
  for (uint64_t page = 1; page < 400; ++page) PokeBat(medium, page * 512 + 200, 3);  // unmapped
  Settle(medium);
  const auto cuts = tests::CutsOf(medium, {1, 40, 4, 2}, [](CrashMedium& whole) {
    const auto shrunk = Shrink(whole, kDiskBytes);
    ASSERT_TRUE(shrunk.ok()) << shrunk.error().ToString();
  });
  ASSERT_GT(cuts.size(), 30u);
  for (size_t i = 0; i < cuts.size(); ++i) {
    CrashMedium after(cuts[i]);
    ASSERT_EQ(WhyNot(after), "") << "cut " << i;
    ASSERT_TRUE(Shrink(after, kDiskBytes).ok()) << "cut " << i;
    ASSERT_EQ(Complaints(after), "") << "cut " << i;
  }
}

// Writes, trims and sizes up and down, against a disk in memory.
TEST(VhdxShrinkTest, AnyHistory) {
  for (uint64_t seed = 0; seed < 30 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    CrashMedium medium = NewDisk();
    Bytes model = Read(*Open(medium, true), 0, kDiskBytes);
    for (int life = 0; life < 8; ++life) {
      const uint64_t size = (1 + random() % (14 * kBlock / 512)) * 512;
      ASSERT_TRUE((size < model.size() ? Shrink(medium, size) : Grow(medium, size)).ok());
      model.resize(size, 0);
      auto image = Open(medium);
      ASSERT_EQ(image->info().size_bytes, size);
      for (int step = 0; step < 6; ++step) {
        const uint64_t offset = random() % (size / 512) * 512;
        const uint64_t length = std::min((1 + random() % 3000) * 512, size - offset);
        const auto value = static_cast<uint8_t>(random() % 3 == 0 ? 0 : random() | 1);
        if (value == 0) {
          ASSERT_TRUE(image->Unmap(offset, length).ok());
        } else {
          Write(*image, offset, Bytes(length, value));
        }
        std::fill_n(model.begin() + static_cast<ptrdiff_t>(offset), length, value);
      }
      ASSERT_TRUE(image->Close().ok());
      ASSERT_TRUE(Read(*Open(medium, true), 0, size) == model);
      ASSERT_EQ(Complaints(medium), "");
    }
  }
}

}  // namespace
}  // namespace kvmbus::virtdev
