// SPDX-License-Identifier: Apache-2.0
// Power cuts under a VHD image.
#include <gtest/gtest.h>

#include <optional>

#include "tests/fakes/acceptable_content.h"
#include "virtdev/disk/vhd/vhd_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhd_test;
using tests::AcceptableContent;
using tests::LiveUntilCut;

constexpr uint64_t kUnits = kDiskBytes / kUnit;
constexpr uint64_t kUnitsABlock = kBlock / kUnit;

AcceptableContent ContentOf(const Bytes& disk) {
  return {kUnits, kUnit, [&disk](uint64_t unit) { return disk[unit * kUnit]; }};
}

/// What lies below: each unit has a value of its own, never one that a write has.
Bytes ParentContent() {
  Bytes bytes(kDiskBytes);
  for (uint64_t i = 0; i < kDiskBytes; ++i) bytes[i] = static_cast<uint8_t>(i / kUnit * 2 + 2);
  return bytes;
}

class VhdCrashTest : public testing::TestWithParam<Kind> {
 protected:
  VhdCrashTest() : parent_(ParentContent()) {}
  const Bytes* parent() const { return GetParam() == Kind::kDifferencing ? &parent_ : nullptr; }
  Bytes FirstContent() const { return parent() != nullptr ? parent_ : Bytes(kDiskBytes, 0); }

  /// Every other one has its end where the first block's bitmap comes, as other programs' have.
  CrashMedium Medium(uint64_t seed) const {
    CrashMedium medium = NewMedium(GetParam());
    if (seed % 2 == 0 || GetParam() == Kind::kFixed) return medium;
    const Bytes footer = medium.now.Read(0, vhd::kFooterBytes);
    const uint64_t at = vhd::BlockStartAfter(EndFooterAt(medium), vhd::kSector);
    medium.now.Write(footer, at);
    return CrashMedium(medium.now);
  }

  /// True if it was a flush.
  bool Step(Image& image, std::mt19937_64& random, AcceptableContent& content) {
    const uint64_t unit = random() % kUnits;
    const uint64_t block = unit / kUnitsABlock;
    switch (random() % 8) {
      case 0:
      case 1:
        EXPECT_TRUE(image.Flush().ok());
        return true;
      case 2:
        for (uint64_t i = block * kUnitsABlock; i < (block + 1) * kUnitsABlock; ++i) {
          if (GetParam() == Kind::kDynamic || (parent() && IsHere(image, i * kUnit)))
            content.Wrote(i, 0);
        }
        EXPECT_TRUE(image.Unmap(block * kBlock, kBlock).ok());
        break;
      case 3:
        content.Wrote(unit, 0);
        EXPECT_TRUE(image.WriteZeroes(unit * kUnit, kUnit).ok());
        break;
      default: {
        const uint64_t count = std::min<uint64_t>(1 + random() % 4, kUnits - unit);
        const auto value = static_cast<uint8_t>(random() | 1);
        content.WroteRange(unit, count, value);
        Write(image, unit * kUnit, Bytes(count * kUnit, value));
      }
    }
    return false;
  }

  /// The image is sound and holds what it may.
  void ExpectSurvived(CrashMedium& medium, const AcceptableContent& content) {
    ASSERT_EQ(Complaints(medium), "");
    auto image = Open(medium, true);
    ASSERT_NE(image, nullptr);
    const Bytes bytes = Read(*image, 0, kDiskBytes, parent());
    for (uint64_t unit = 0; unit < kUnits; ++unit)
      ASSERT_TRUE(content.Allows(unit, bytes.data() + unit * kUnit)) << "unit " << unit;
    // Mending the footers changes nothing else.
    image = Open(medium);
    ASSERT_NE(image, nullptr);
    ASSERT_EQ(Complaints(medium, true).find("footer"), std::string::npos)
        << Complaints(medium, true);
    ASSERT_EQ(Read(*image, 0, kDiskBytes, parent()), bytes);
  }

 private:
  const Bytes parent_;
};

/// A fixed disk's only footer is never written.
class VhdMendingTest : public VhdCrashTest {};

// Power is cut before any write or flush, with any subset of the unflushed sectors kept: the image
// opens, the strict check has nothing to say, what was flushed is there, the rest is old or new.
// Some machines live twice.
TEST_P(VhdCrashTest, NothingFlushedIsLostAndNothingElseIsGarbage) {
  for (uint64_t seed = 0; seed < 200 && !HasFailure(); ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 random(seed);
    CrashMedium medium = Medium(seed);
    AcceptableContent content = ContentOf(FirstContent());
    const int lives = 1 + static_cast<int>(random() % 3);
    for (int life = 0; life < lives; ++life) {
      const int steps = 8 + static_cast<int>(random() % 30);
      const SparseBytes left = LiveUntilCut(
          medium, random, random() % 300, steps, content,
          [](CrashMedium& opened) { return Open(opened); },
          [&](Image& image) { return Step(image, random, content); });
      medium = CrashMedium(left);
      CrashMedium copy(left);
      ASSERT_NO_FATAL_FAILURE(ExpectSurvived(copy, content));
      // What was found once is there for good: a second crash may not bring back anything else.
      content.Found(Read(*Open(copy), 0, kDiskBytes, parent()));
    }
  }
}

// Every single event of one scenario, several times, so that no order of writes escapes by luck.
TEST_P(VhdCrashTest, EveryMomentOfAScenario) {
  uint64_t events = 0;
  for (uint64_t round = 0; round < 4; ++round) {
    for (uint64_t cut_at = 0; cut_at <= events && !HasFailure(); ++cut_at) {
      SCOPED_TRACE(fmt::format("cut at {}", cut_at));
      CrashMedium medium = Medium(round);
      std::mt19937_64 random(cut_at * 4 + round);
      std::optional<SparseBytes> cut;
      uint64_t event = 0;
      AcceptableContent content = ContentOf(FirstContent());
      medium.on_event = [&] {
        if (event++ == cut_at) cut = medium.Crash(random);
      };
      const auto write = [&](Image& image, uint64_t block, uint8_t value) {
        if (!cut) content.Wrote(block * kUnitsABlock, value);
        Write(image, block * kBlock, Bytes(kUnit, value));
      };
      const auto flush = [&](Image& image) {
        ASSERT_TRUE(image.Flush().ok());
        if (!cut) content.Flushed();
      };
      auto image = Open(medium);
      write(*image, 0, 1);
      write(*image, 5, 3);
      flush(*image);
      if (!cut) content.Wrote(0, 0);
      ASSERT_TRUE(image->WriteZeroes(0, kUnit).ok());
      write(*image, 5, 5);
      if (!cut) content.Wrote(2 * kUnitsABlock, 0);
      ASSERT_TRUE(image->WriteZeroes(2 * kBlock, kUnit).ok());
      flush(*image);
      write(*image, 3, 7);
      ASSERT_TRUE(image->Close().ok());
      if (!cut) content.Flushed();
      image.reset();
      medium.on_event = nullptr;
      events = std::max(events, event);
      CrashMedium after(cut ? *cut : medium.now);
      ASSERT_NO_FATAL_FAILURE(ExpectSurvived(after, content));
    }
  }
  EXPECT_GT(events, 6u);
}

// The machine dies while footers are mended, and again, and again.
TEST_P(VhdMendingTest, AMendingThatIsCutIsRepeated) {
  CrashMedium whole = Medium(1);
  AcceptableContent content = ContentOf(FirstContent());
  {
    auto image = Open(whole);
    Write(*image, kBlock, Bytes(kUnit, 9));
    content.Wrote(kUnitsABlock, 9);
    ASSERT_TRUE(image->Close().ok());
    content.Flushed();
  }
  const uint64_t end = EndFooterAt(whole);
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 random(seed);
    CrashMedium dying(whole.now);
    dying.now.Write(Bytes(vhd::kFooterBytes, 0x55), seed % 2 == 0 ? end : 0);
    if (seed % 4 == 0) dying.now.Resize(end + random() % 4 * 50000);
    dying = CrashMedium(dying.now);
    for (int death = 0; death < 3; ++death) {
      std::optional<SparseBytes> cut;
      uint64_t cut_at = random() % 4;
      dying.on_event = [&] {
        if (!cut && cut_at-- == 0) cut = dying.Crash(random);
      };
      ASSERT_NE(Open(dying), nullptr);
      if (cut) dying = CrashMedium(*cut);
      dying.on_event = nullptr;
    }
    ASSERT_NE(Open(dying), nullptr);
    ASSERT_NO_FATAL_FAILURE(ExpectSurvived(dying, content));
    ASSERT_EQ(Complaints(dying, true).find("belong to nothing"), std::string::npos);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, VhdCrashTest,
                         testing::Values(Kind::kFixed, Kind::kDynamic, Kind::kDifferencing));
INSTANTIATE_TEST_SUITE_P(Kinds, VhdMendingTest,
                         testing::Values(Kind::kDynamic, Kind::kDifferencing));

}  // namespace
}  // namespace kvmbus::virtdev
