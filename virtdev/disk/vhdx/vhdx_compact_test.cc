// SPDX-License-Identifier: Apache-2.0
// Compacting: what is given up, what stays, and the power cut at any moment of it.
#include "virtdev/disk/vhdx/vhdx_compact.h"

#include "tests/fakes/power_cuts.h"
#include "virtdev/disk/vhdx/vhdx_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx_test;

vmm::Result<void> Compact(CrashMedium& medium, bool find_zeroes = true,
                          const Progress& progress = {}) {
  const vhdx::VhdxFile vhdx = TRY(vhdx::OpenVhdxFile(std::make_unique<CrashFile>(medium), false));
  return vhdx::CompactVhdx(vhdx, find_zeroes, progress);
}

uint64_t FileBytes(CrashMedium& medium) { return CrashFile(medium).Size().value(); }

/// Blocks 0 to 9 from the file's front to its end; 1, 2 and 5 are unmapped, 3 and 9 hold zeroes.
CrashMedium NewDisk() {
  CrashMedium medium = NewMedium();
  auto image = Open(medium);
  for (uint64_t block = 0; block < 10; ++block) {
    const bool zero = block == 3 || block == 9;
    Write(*image, block * kBlock, Bytes(kBlock, zero ? 0 : static_cast<uint8_t>(block + 1)));
  }
  EXPECT_TRUE(image->Flush().ok());
  for (const uint64_t block : {1, 2, 5}) EXPECT_TRUE(image->Unmap(block * kBlock, kBlock).ok());
  EXPECT_TRUE(image->Close().ok());
  Settle(medium);
  return medium;
}

Bytes Content() {
  Bytes bytes(kDiskBytes, 0);
  for (const uint64_t block : {0, 4, 6, 7, 8})
    std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(block * kBlock), kBlock,
                static_cast<uint8_t>(block + 1));
  return bytes;
}

void ExpectContent(CrashMedium& medium) {
  const auto image = Open(medium, true);
  ASSERT_TRUE(image);
  EXPECT_TRUE(Read(*image, 0, kDiskBytes) == Content());
  EXPECT_EQ(Complaints(medium), "");
}

TEST(VhdxCompactTest, TheFileShrinksToWhatHoldsSomething) {
  CrashMedium medium = NewDisk();
  const uint64_t before = FileBytes(medium);
  const vmm::Guid identity = Open(medium, true)->identity();
  ASSERT_TRUE(Compact(medium).ok());
  ASSERT_NO_FATAL_FAILURE(ExpectContent(medium));
  EXPECT_EQ(FileBytes(medium), before - 5 * kBlock);
  EXPECT_EQ(Open(medium, true)->identity(), identity) << "its children are lost";
  ASSERT_TRUE(Compact(medium).ok()) << "once more";
  EXPECT_EQ(FileBytes(medium), before - 5 * kBlock);
  auto image = Open(medium);
  Write(*image, 9 * kBlock, Bytes(kUnit, 9));
  ASSERT_TRUE(image->Close().ok());
  EXPECT_EQ(Read(*Open(medium, true), 9 * kBlock, kUnit), Bytes(kUnit, 9));
  EXPECT_EQ(Complaints(medium), "");
}

TEST(VhdxCompactTest, QuickKeepsBlocksOfZeroes) {
  CrashMedium medium = NewDisk();
  const uint64_t before = FileBytes(medium);
  ASSERT_TRUE(Compact(medium, false).ok());
  ASSERT_NO_FATAL_FAILURE(ExpectContent(medium));
  EXPECT_EQ(FileBytes(medium), before - 3 * kBlock);
}

TEST(VhdxCompactTest, AChildKeepsItsBitmapsAndItsParent) {
  CrashMedium parent = NewDisk();
  CrashMedium child = NewChild(parent);
  {
    auto image = Open(child);
    for (uint64_t block = 0; block < 6; ++block)
      Write(*image, block * kBlock, Bytes(kBlock, static_cast<uint8_t>(block + 100)));
    Write(*image, 8 * kBlock + kUnit, Bytes(kUnit, 200));  // partly present, with a bitmap
    ASSERT_TRUE(image->Flush().ok());
    for (const uint64_t block : {0, 1, 2}) ASSERT_TRUE(image->Unmap(block * kBlock, kBlock).ok());
    ASSERT_TRUE(image->Close().ok());
  }
  const Bytes before = Read(*OpenAsChain({&child, &parent}, true), 0, kDiskBytes);
  const uint64_t length = FileBytes(child);
  ASSERT_TRUE(Compact(parent).ok());
  ASSERT_TRUE(Compact(child).ok());
  EXPECT_EQ(FileBytes(child), length - 3 * kBlock);
  const auto layer = Open(child, true);
  EXPECT_EQ(layer->parent()->linkage.front(), Open(parent, true)->identity());
  EXPECT_TRUE(Read(*OpenAsChain({&child, &parent}, true), 0, kDiskBytes) == before);
  EXPECT_EQ(Complaints(child), "");
}

// Whatever was written, in whatever order: the same content, a sound image, nothing larger.
TEST(VhdxCompactTest, AnyHistory) {
  for (uint64_t seed = 0; seed < 30 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    CrashMedium parent = NewDisk();
    CrashMedium child = NewChild(parent);
    const bool differencing = seed % 2 != 0;
    CrashMedium& medium = differencing ? child : parent;
    for (int life = 0; life < 3; ++life) {
      auto image = Open(medium);
      for (int step = 0; step < 12; ++step) {
        const uint64_t block = random() % (kDiskBytes / kBlock);
        if (random() % 3 == 0) {
          ASSERT_TRUE(image->Unmap(block * kBlock, kBlock).ok());
        } else {
          const uint64_t length = random() % 2 == 0 ? kBlock : kUnit * (1 + random() % 20);
          Write(*image, block * kBlock, Bytes(length, static_cast<uint8_t>(random() % 4)));
        }
        if (random() % 4 == 0) {
          ASSERT_TRUE(image->Flush().ok());
        }
      }
      ASSERT_TRUE(image->Close().ok());
      image.reset();
      std::vector<CrashMedium*> layers{&medium};
      if (differencing) layers.push_back(&parent);
      const Bytes before = Read(*OpenAsChain(layers, true), 0, kDiskBytes);
      const uint64_t length = FileBytes(medium);
      ASSERT_TRUE(Compact(medium, random() % 2 == 0).ok());
      ASSERT_TRUE(Read(*OpenAsChain(layers, true), 0, kDiskBytes) == before);
      ASSERT_EQ(Complaints(medium), "");
      ASSERT_LE(FileBytes(medium), length);
    }
  }
}

TEST(VhdxCompactTest, ACancelLosesNothing) {
  CrashMedium medium = NewDisk();
  for (int stop_at = 1;; ++stop_at) {
    ASSERT_LT(stop_at, 100);
    int step = 0;
    const auto done = Compact(medium, true, [&](uint64_t, uint64_t) { return ++step < stop_at; });
    ASSERT_NO_FATAL_FAILURE(ExpectContent(medium));
    if (done.ok()) break;
    ASSERT_EQ(done.error().code(), vmm::Code::kCancelled);
  }
}

TEST(VhdxCompactTest, AFixedDiskIsRefused) {
  CrashMedium fixed = NewMedium(SmallDisk(true));
  const SparseBytes before = fixed.now;
  EXPECT_EQ(Compact(fixed).error().code(), vmm::Code::kInvalidArgument);
  EXPECT_TRUE(fixed.now == before);
}

TEST(VhdxCompactTest, AnyMomentLeavesTheContent) {
  CrashMedium medium = NewDisk();
  const tests::CutPlan plan{8, 8, 8, 67};
  const auto cuts =
      tests::CutsOf(medium, plan, [](CrashMedium& whole) { ASSERT_TRUE(Compact(whole).ok()); });
  EXPECT_GT(cuts.size(), 50u);
  for (size_t i = 0; i < cuts.size() && !HasFailure(); ++i) {
    SCOPED_TRACE(fmt::format("cut {} of {}", i, cuts.size()));
    CrashMedium after(cuts[i]);
    ASSERT_NO_FATAL_FAILURE(ExpectContent(after));
    ASSERT_TRUE(Compact(after).ok());
    ASSERT_NO_FATAL_FAILURE(ExpectContent(after));
    EXPECT_EQ(FileBytes(after), FileBytes(medium)) << "space was lost";
  }
}

}  // namespace
}  // namespace kvmbus::virtdev
