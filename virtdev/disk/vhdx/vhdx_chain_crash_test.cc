// SPDX-License-Identifier: Apache-2.0
// Power cuts under a differencing VHDX image: a sector is its parent's or one that was written.
#include <gtest/gtest.h>

#include <optional>

#include "tests/fakes/acceptable_content.h"
#include "virtdev/disk/vhdx/vhdx_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx_test;
using tests::AcceptableContent;
using tests::LiveUntilCut;

constexpr uint64_t kSectorBytes = 512;
constexpr uint64_t kCrashDiskBytes = 3u << 20;
constexpr uint64_t kSectorsABlock = kBlock / kSectorBytes;

/// What the parent holds: never 0, and never what is written over it, which is even.
uint8_t ParentValue(uint64_t sector) { return static_cast<uint8_t>(sector % 127 * 2 + 1); }

CreateDiskOptions CrashDisk() {
  CreateDiskOptions options = SmallDisk();
  options.size_bytes = kCrashDiskBytes;
  return options;
}

CrashMedium& Parent() {
  static CrashMedium parent = [] {
    CrashMedium medium = NewMedium(CrashDisk());
    auto image = Open(medium);
    Bytes bytes;
    for (uint64_t sector = 0; sector < kCrashDiskBytes / kSectorBytes; ++sector)
      bytes.insert(bytes.end(), kSectorBytes, ParentValue(sector));
    Write(*image, 0, bytes);
    EXPECT_TRUE(image->Close().ok());
    return medium;
  }();
  return parent;
}

AcceptableContent ParentsContent() {
  return {kCrashDiskBytes / kSectorBytes, kSectorBytes, ParentValue};
}

bool Step(Image& image, std::mt19937_64& random, AcceptableContent& content) {
  uint64_t first = random() % content.units(), count = 1 + random() % 12;
  if (random() % 6 == 0) {
    first = first / kSectorsABlock * kSectorsABlock;
    count = kSectorsABlock;
  }
  count = std::min(count, content.units() - first);
  const uint64_t offset = first * kSectorBytes, length = count * kSectorBytes;
  switch (random() % 8) {
    case 0:
    case 1:
      EXPECT_TRUE(image.Flush().ok());
      return true;
    case 2:
      content.WroteRange(first, count, 0);
      EXPECT_TRUE(image.Unmap(offset, length).ok());
      break;
    case 3:
      content.WroteRange(first, count, 0);
      EXPECT_TRUE(image.WriteZeroes(offset, length).ok());
      break;
    default: {
      const auto value = static_cast<uint8_t>(2 + random() % 127 * 2);
      content.WroteRange(first, count, value);
      Write(image, offset, Bytes(length, value));
    }
  }
  return false;
}

/// The image is sound and holds what it may; a second crash may not bring back anything else.
void ExpectSurvived(CrashMedium& medium, AcceptableContent& content) {
  ASSERT_EQ(Complaints(medium), "");
  Bytes bytes;
  {
    auto chain = OpenAsChain({&medium, &Parent()}, true);
    bytes = Read(*chain, 0, kCrashDiskBytes);
  }
  for (uint64_t sector = 0; sector < content.units(); ++sector)
    ASSERT_TRUE(content.Allows(sector, bytes.data() + sector * kSectorBytes)) << sector;
  // The replay in place ends in the same disk as the one in memory.
  auto chain = OpenAsChain({&medium, &Parent()});
  ASSERT_EQ(Complaints(medium, true), "");
  ASSERT_EQ(Read(*chain, 0, kCrashDiskBytes), bytes);
  content.Found(bytes);
}

TEST(VhdxChainCrashTest, NothingFlushedIsLostAndNothingElseIsGarbage) {
  for (uint64_t seed = 0; seed < 500 && !HasFailure(); ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 random(seed);
    CrashMedium medium = NewChild(Parent(), CrashDisk());
    AcceptableContent content = ParentsContent();
    const int lives = 1 + static_cast<int>(random() % 3);
    for (int life = 0; life < lives; ++life) {
      const uint64_t cut_at = random() % 600;
      const SparseBytes left = LiveUntilCut(
          medium, random, cut_at, 8 + static_cast<int>(random() % 40), content,
          [](CrashMedium& opened) { return Open(opened); },
          [&](Image& image) { return Step(image, random, content); });
      medium = CrashMedium(left);
      CrashMedium copy(left);
      ASSERT_NO_FATAL_FAILURE(ExpectSurvived(copy, content));
    }
  }
}

// Every single event of one scenario that goes through all states of a block.
TEST(VhdxChainCrashTest, EveryMomentOfAScenario) {
  constexpr uint64_t kTries = 2;
  uint64_t events = 0;
  for (uint64_t round = 0; round <= events * kTries && !HasFailure(); ++round) {
    const uint64_t cut_at = round / kTries;
    SCOPED_TRACE(fmt::format("cut at {}, round {}", cut_at, round));
    CrashMedium medium = NewChild(Parent(), CrashDisk());
    std::mt19937_64 random(round);
    std::optional<SparseBytes> cut;
    uint64_t event = 0;
    AcceptableContent content = ParentsContent();
    medium.on_event = [&] {
      if (event++ == cut_at) cut = medium.Crash(random);
    };
    auto image = Open(medium);
    const auto write = [&](uint64_t sector, uint64_t count, uint8_t value) {
      if (!cut) content.WroteRange(sector, count, value);
      Write(*image, sector * kSectorBytes, Bytes(count * kSectorBytes, value));
    };
    const auto flush = [&] {
      ASSERT_TRUE(image->Flush().ok());
      if (!cut) content.Flushed();
    };
    write(0, 3, 2);  // 0 to partly present
    flush();
    write(5, 3, 4);  // more bits
    write(kSectorsABlock, 1, 6);
    flush();
    if (!cut) content.WroteRange(0, kSectorsABlock, 0);
    ASSERT_TRUE(image->Unmap(0, kBlock).ok());
    flush();
    write(2 * kSectorsABlock + 7, 9, 8);  // takes the place of block 0, which holds its old data
    flush();
    write(0, 1, 10);  // unmapped to wholly present
    if (!cut) content.WroteRange(kSectorsABlock + 9, 9, 0);
    ASSERT_TRUE(image->WriteZeroes((kSectorsABlock + 9) * kSectorBytes, 9 * kSectorBytes).ok());
    flush();
    write(kSectorsABlock, kSectorsABlock, 12);  // partly to wholly present
    ASSERT_TRUE(image->Close().ok());
    if (!cut) content.Flushed();
    image.reset();
    medium.on_event = nullptr;
    events = std::max(events, event);
    CrashMedium after(cut ? *cut : medium.now);
    ASSERT_NO_FATAL_FAILURE(ExpectSurvived(after, content));
  }
  EXPECT_GT(events, 40u);
}

// A flush of more pages than an entry of the log takes: whatever part of it is there, no block
// shows what is not its own. The blocks' places hold old data of others.
TEST(VhdxChainCrashTest, AFlushOfSeveralEntries) {
  constexpr uint64_t kStep = 512u << 20;  // a page of the BAT, and 32 of a bitmap
  constexpr uint64_t kBlocks = 150;
  CreateDiskOptions options = SmallDisk();
  options.size_bytes = (1 + kBlocks) * kStep;
  CrashMedium parent = NewMedium(options);
  CrashMedium before = NewChild(parent, options);
  {
    auto image = Open(before);
    for (uint64_t i = 0; i < kBlocks; ++i)
      Write(*image, i * kBlock, Bytes(i < 8 ? kBlock : kSectorBytes, 0xee));
    ASSERT_TRUE(image->Flush().ok());
    ASSERT_TRUE(image->Unmap(0, kBlocks * kBlock).ok());
    ASSERT_TRUE(image->Flush().ok());
    before = CrashMedium(before.now);
  }
  const auto place = [](uint64_t i) { return (1 + i) * kStep; };
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    CrashMedium medium(before.now);
    std::optional<SparseBytes> cut;
    auto image = Open(medium);
    for (uint64_t i = 0; i < kBlocks; ++i) {
      Write(*image, place(i), Bytes(kSectorBytes, 2));
      Write(*image, place(i) + 2 * kSectorBytes, Bytes(kSectorBytes, 4));
    }
    uint64_t cut_at = random() % 700;
    medium.on_event = [&] {
      if (!cut && cut_at-- == 0) cut = medium.Crash(random);
    };
    ASSERT_TRUE(image->Flush().ok());
    medium.on_event = nullptr;
    image.reset();
    CrashMedium after(cut ? *cut : medium.now);
    ASSERT_EQ(Complaints(after), "");
    auto chain = OpenAsChain({&after, &parent});
    for (uint64_t i = 0; i < kBlocks; ++i) {
      const Bytes bytes = Read(*chain, place(i), 4 * kSectorBytes);
      const uint8_t first = bytes[0], third = bytes[2 * kSectorBytes];
      ASSERT_TRUE(cut ? first == 0 || first == 2 : first == 2) << i << ": " << int{first};
      ASSERT_TRUE(cut ? third == 0 || third == 4 : third == 4) << i << ": " << int{third};
      ASSERT_EQ(bytes[kSectorBytes], 0);
      ASSERT_EQ(bytes[3 * kSectorBytes], 0);
    }
  }
}

}  // namespace
}  // namespace kvmbus::virtdev
