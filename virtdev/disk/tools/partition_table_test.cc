// SPDX-License-Identifier: Apache-2.0
// What a disk's tables say of its end, and the power cut while a GPT is fitted to a smaller disk.
#include "virtdev/disk/tools/partition_table.h"

#include "virtdev/disk/tools/partition_table_test_disk.h"
#include "virtdev/disk/vhdx/vhdx_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx_test;
using namespace partition_test;
using Kind = PartitionTable::Kind;

constexpr uint64_t kSectors = kDiskBytes / 512;

PartitionTable Look(Image& image) {
  const auto table = ReadPartitionTable(image);
  EXPECT_TRUE(table.ok());
  return table.ok() ? *table : PartitionTable{};
}

TEST(PartitionTableTest, AnMbrEndsWithItsLastPartition) {
  CrashMedium medium = NewMedium();
  const auto image = Open(medium);
  EXPECT_EQ(Look(*image).kind, Kind::kNone) << "an empty disk";
  PutMbr(*image, {});
  EXPECT_EQ(Look(*image).kind, Kind::kNone) << "a table without a partition";
  PutMbr(*image, {{9000, 1000}, {2048, 4096}, {0, 0, 0}, {10000, 500, 0x0f}});
  EXPECT_EQ(Look(*image).kind, Kind::kMbr);
  EXPECT_EQ(Look(*image).smallest_bytes, 10500u * 512);
  PutMbr(*image, {{2048, 4096, 0x42}});
  EXPECT_EQ(Look(*image).smallest_bytes, kDiskBytes) << "a dynamic disk of Windows";
  PutMbr(*image, {{2048, 0xffffffff}});
  EXPECT_GT(Look(*image).smallest_bytes, kDiskBytes) << "past the disk's end";
}

TEST(PartitionTableTest, ABootSectorIsNoTable) {
  CrashMedium medium = NewMedium();
  const auto image = Open(medium);
  PutMbr(*image, {{2048, 4096}});
  Bytes sector(512);
  ASSERT_TRUE(ReadImage(*image, 0, sector).ok());
  sector[446] = 'N';  // "NTLDR is missing"
  ASSERT_TRUE(WriteImage(*image, 0, sector).ok());
  EXPECT_EQ(Look(*image).kind, Kind::kNone);
  EXPECT_NE(Look(*image).flaw, "");
}

TEST(PartitionTableTest, AGptNeedsRoomForItsSecondCopy) {
  for (const uint32_t sector : {512u, 4096u}) {
    CreateDiskOptions options = SmallDisk();
    options.logical_sector = sector;
    CrashMedium medium = NewMedium(options);
    const auto image = Open(medium);
    PutGpt(*image, {{100, 50}, {300, 20}, {200, 30}});
    const uint64_t copy = kGptEntries * kGptEntryBytes + sector;
    EXPECT_EQ(Look(*image).kind, Kind::kGpt);
    EXPECT_EQ(Look(*image).smallest_bytes, 320 * sector + copy);
    PutGpt(*image, {});
    EXPECT_EQ(Look(*image).smallest_bytes, sector * 3 + 2 * copy - sector) << "one usable sector";
  }
}

// Every field of a header whose checksum is right: a flaw, or an end that nobody undercuts.
TEST(PartitionTableTest, AHostileGptIsNoAccident) {
  CrashMedium medium = NewMedium();
  const auto image = Open(medium);
  PutGpt(*image, {{100, 50}});
  const uint64_t smallest = Look(*image).smallest_bytes;
  Bytes good(512);
  ASSERT_TRUE(ReadImage(*image, 512, good).ok());
  for (size_t at = 0; at < 92; at += 4) {
    for (const uint64_t value : {0ull, 1ull, 0x7full, 0x10000ull, 0xffffffffull, 0x80000000ull}) {
      Bytes header = good;
      Put(header, at, value, 4);
      Put(header, 16, 0, 4);
      Put(header, 16, Crc(header, std::min<uint64_t>(Get(header, 12, 4), 512)), 4);
      ASSERT_TRUE(WriteImage(*image, 512, header).ok());
      const PartitionTable table = Look(*image);
      if (table.kind == Kind::kGpt) {
        EXPECT_GE(table.smallest_bytes, smallest) << at << " " << value;
      } else {
        EXPECT_NE(table.flaw, "") << at << " " << value;
      }
      if (table.kind != Kind::kGpt) {
        EXPECT_FALSE(FitGpt(*image, kDiskBytes - kBlock).ok());
      }
    }
  }
  Bytes torn = good;
  torn[60] ^= 1;
  ASSERT_TRUE(WriteImage(*image, 512, torn).ok());
  EXPECT_NE(Look(*image).flaw.find("checksum"), std::string::npos);
}

TEST(PartitionTableTest, AnyMomentOfAFitLeavesASoundGpt) {
  constexpr uint64_t kSmaller = kDiskBytes / 2;
  CrashMedium medium = NewMedium();
  auto image = Open(medium);
  PutGpt(*image, {{100, 50}, {2048, 8000}});
  Write(*image, 2048 * 512, Bytes(kUnit, 7));
  ASSERT_TRUE(image->Close().ok());
  image = Open(medium);
  Settle(medium);
  ExpectSoundGpt(*image);
  std::vector<SparseBytes> cuts;
  std::mt19937_64 random(1);
  medium.on_event = [&] {
    for (int i = 0; i < (medium.at_flush ? 6 : 1); ++i) cuts.push_back(medium.Crash(random));
  };
  ASSERT_TRUE(FitGpt(*image, kSmaller).ok());
  medium.on_event = nullptr;
  cuts.push_back(medium.durable);
  ASSERT_GT(cuts.size(), 30u);
  for (const SparseBytes& cut : cuts) {
    CrashMedium after(cut);
    const auto found = Open(after, true);
    ASSERT_NO_FATAL_FAILURE(ExpectSoundGpt(*found));
    ASSERT_EQ(Read(*found, 2048 * 512, kUnit), Bytes(kUnit, 7));
    ASSERT_EQ(Complaints(after), "");
  }
  Bytes sector(512);
  ASSERT_TRUE(ReadImage(*image, kSmaller - 512, sector).ok());
  EXPECT_EQ(std::memcmp(sector.data(), "EFI PART", 8), 0) << "it is at the new end";
  ASSERT_TRUE(ReadImage(*image, 0, sector).ok());
  EXPECT_EQ(Get(sector, 446 + 12, 4), kSmaller / 512 - 1) << "the protective entry";
  EXPECT_LT(kSectors, 0xffffffffu);
}

}  // namespace
}  // namespace kvmbus::virtdev
