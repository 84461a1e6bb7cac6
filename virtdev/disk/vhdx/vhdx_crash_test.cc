// SPDX-License-Identifier: Apache-2.0
// Power cuts under a VHDX image.
#include <gtest/gtest.h>

#include <optional>

#include "tests/fakes/acceptable_content.h"
#include "virtdev/disk/vhdx/vhdx_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx_test;
using tests::AcceptableContent;
using tests::LiveUntilCut;

constexpr uint64_t kCrashDiskBytes = 5u << 20;

CreateDiskOptions CrashDisk() {
  CreateDiskOptions options = SmallDisk();
  options.size_bytes = kCrashDiskBytes;
  return options;
}

AcceptableContent EmptyDisk() {
  return {kCrashDiskBytes / kUnit, kUnit, [](uint64_t) -> uint8_t { return 0; }};
}

bool Step(Image& image, std::mt19937_64& random, AcceptableContent& content) {
  constexpr uint64_t kUnitsABlock = kBlock / kUnit;
  const uint64_t unit = random() % content.units();
  const uint64_t block = unit / kUnitsABlock;
  switch (random() % 8) {
    case 0:
    case 1:
      EXPECT_TRUE(image.Flush().ok());
      return true;
    case 2:
      content.WroteRange(block * kUnitsABlock, kUnitsABlock, 0);
      EXPECT_TRUE(image.Unmap(block * kBlock, kBlock).ok());
      break;
    case 3:
      content.Wrote(unit, 0);
      EXPECT_TRUE(image.WriteZeroes(unit * kUnit, kUnit).ok());
      break;
    default: {
      const uint64_t count = std::min<uint64_t>(1 + random() % 4, content.units() - unit);
      const auto value = static_cast<uint8_t>(random() | 1);
      content.WroteRange(unit, count, value);
      Write(image, unit * kUnit, Bytes(count * kUnit, value));
    }
  }
  return false;
}

/// The image is sound and holds what it may; a second crash may not bring back anything else.
void ExpectSurvived(CrashMedium& medium, AcceptableContent& content) {
  ASSERT_EQ(Complaints(medium), "");
  auto image = Open(medium, true);
  ASSERT_NE(image, nullptr);
  const Bytes bytes = Read(*image, 0, kCrashDiskBytes);
  for (uint64_t unit = 0; unit < content.units(); ++unit)
    ASSERT_TRUE(content.Allows(unit, bytes.data() + unit * kUnit)) << "unit " << unit;
  // The replay in place ends in the same disk as the one in memory.
  image = Open(medium);
  ASSERT_NE(image, nullptr);
  ASSERT_EQ(Complaints(medium, true), "");
  ASSERT_EQ(Read(*image, 0, kCrashDiskBytes), bytes);
  content.Found(bytes);
}

// Power is cut before any write or flush, with any subset of the unflushed sectors kept: the image
// opens, the strict check has nothing to say, what was flushed is there, the rest is old or new.
// Some machines live twice, and some die in the replay.
TEST(VhdxCrashTest, NothingFlushedIsLostAndNothingElseIsGarbage) {
  for (uint64_t seed = 0; seed < 1000 && !HasFailure(); ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 random(seed);
    CrashMedium medium = NewMedium(CrashDisk());
    AcceptableContent content = EmptyDisk();
    const int lives = 1 + static_cast<int>(random() % 3);
    for (int life = 0; life < lives; ++life) {
      const uint64_t cut_at = random() % 400;
      const SparseBytes left = LiveUntilCut(
          medium, random, cut_at, 8 + static_cast<int>(random() % 30), content,
          [](CrashMedium& opened) { return Open(opened); },
          [&](Image& image) { return Step(image, random, content); });
      medium = CrashMedium(left);
      CrashMedium copy(left);
      ASSERT_NO_FATAL_FAILURE(ExpectSurvived(copy, content));
    }
  }
}

// Every single event of one scenario, so that no order of writes escapes by luck.
TEST(VhdxCrashTest, EveryMomentOfAScenario) {
  uint64_t events = 0;
  for (uint64_t cut_at = 0; cut_at <= events && !HasFailure(); ++cut_at) {
    SCOPED_TRACE(fmt::format("cut at {}", cut_at));
    CrashMedium medium = NewMedium(CrashDisk());
    std::mt19937_64 random(cut_at);
    std::optional<SparseBytes> cut;
    uint64_t event = 0;
    AcceptableContent content = EmptyDisk();
    medium.on_event = [&] {
      if (event++ == cut_at) cut = medium.Crash(random);
    };
    const auto write = [&](Image& image, uint64_t block, uint8_t value) {
      if (!cut) content.Wrote(block * (kBlock / kUnit), value);
      Write(image, block * kBlock, Bytes(kUnit, value));
    };
    const auto flush = [&](Image& image) {
      ASSERT_TRUE(image.Flush().ok());
      if (!cut) content.Flushed();
    };
    auto image = Open(medium);
    write(*image, 0, 1);
    write(*image, 1, 2);
    flush(*image);
    if (!cut) content.WroteRange(0, kBlock / kUnit, 0);
    ASSERT_TRUE(image->Unmap(0, kBlock).ok());
    flush(*image);
    write(*image, 2, 3);  // takes the place of block 0
    write(*image, 3, 4);
    flush(*image);
    write(*image, 0, 5);
    ASSERT_TRUE(image->Close().ok());
    if (!cut) content.Flushed();
    image.reset();
    medium.on_event = nullptr;
    events = std::max(events, event);
    CrashMedium after(cut ? *cut : medium.now);
    ASSERT_NO_FATAL_FAILURE(ExpectSurvived(after, content));
  }
  EXPECT_GT(events, 30u);
}

// The machine dies while it replays, and again, and again.
TEST(VhdxCrashTest, AReplayThatIsCutIsRepeated) {
  CrashMedium medium = NewMedium();
  {
    auto image = Open(medium);
    for (uint64_t block = 0; block < 12; ++block) {
      Write(*image, block * kBlock, Bytes(kUnit, static_cast<uint8_t>(block + 1)));
      ASSERT_TRUE(image->Flush().ok());
    }
  }
  const SparseBytes dirty = medium.durable;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    std::mt19937_64 random(seed);
    CrashMedium dying(dirty);
    for (int death = 0; death < 3; ++death) {
      std::optional<SparseBytes> cut;
      uint64_t cut_at = random() % 8;
      dying.on_event = [&] {
        if (!cut && cut_at-- == 0) cut = dying.Crash(random);
      };
      ASSERT_NE(Open(dying), nullptr) << seed;
      if (cut) dying = CrashMedium(*cut);
      dying.on_event = nullptr;
    }
    auto image = Open(dying);
    ASSERT_EQ(Complaints(dying, true), "") << seed;
    for (uint64_t block = 0; block < 12; ++block)
      ASSERT_EQ(Read(*image, block * kBlock, kUnit), Bytes(kUnit, static_cast<uint8_t>(block + 1)))
          << seed;
  }
}

}  // namespace
}  // namespace kvmbus::virtdev
