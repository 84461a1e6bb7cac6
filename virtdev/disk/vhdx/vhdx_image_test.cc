// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <chrono>

#include "virtdev/disk/vhdx/vhdx_bat.h"
#include "virtdev/disk/vhdx/vhdx_header.h"
#include "virtdev/disk/vhdx/vhdx_space.h"
#include "virtdev/disk/vhdx/vhdx_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx_test;
using vhdx::FreeSpace;
using vhdx::kMiB;

TEST(VhdxFormatTest, ChecksumIsCastagnolis) {
  const std::string text = "123456789";
  const std::span bytes(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  EXPECT_EQ(vhdx::Crc32c(bytes), 0xe3069283u);
  vhdx::Crc32cSum sum;
  sum.Add(bytes.first(4));
  sum.Add(bytes.subspan(4));
  EXPECT_EQ(sum.value(), 0xe3069283u);
}

TEST(VhdxFormatTest, BatIndexSkipsTheBitmapEntries) {
  EXPECT_EQ(vhdx::ChunkRatio(512, 2u << 20), 2048u);
  EXPECT_EQ(vhdx::ChunkRatio(4096, 2u << 20), 16384u);
  EXPECT_EQ(vhdx::ChunkRatio(512, 256u << 20), 16u);
  EXPECT_EQ(vhdx::BatIndex(2047, 2048), 2047u);
  EXPECT_EQ(vhdx::BatIndex(2048, 2048), 2049u);
  EXPECT_EQ(vhdx::BatEntryCount(2048, 2048), 2048u);
  EXPECT_EQ(vhdx::BatEntryCount(2049, 2048), 2050u);
  EXPECT_EQ(vhdx::DifferencingBatEntryCount(1, 2048), 2049u);
}

TEST(FreeSpaceTest, GapsJoinAndServe) {
  const std::vector<vhdx::FileRange> used = {{0, 4}, {6, 1}, {10, 2}};
  FreeSpace space(2, used, 13);
  EXPECT_EQ(space.EndOfUse(13), 12u);
  EXPECT_EQ(space.Take(), 4u);
  EXPECT_EQ(space.Take(), 7u);
  EXPECT_EQ(space.Take(), std::nullopt) << "9 and 12 are single";
  space.Release(10, 2);
  EXPECT_EQ(space.EndOfUse(13), 9u) << "9, 10 to 11 and 12 are one";
  EXPECT_EQ(space.Take(), 9u);
  EXPECT_EQ(space.Take(), 11u);
  EXPECT_EQ(space.EndOfUse(13), 13u);
}

TEST(IoGateTest, AnOldRequestHoldsThePhaseBack) {
  IoGate gate;
  const uint32_t old = gate.Enter();
  const uint64_t phase = gate.phase();
  gate.Advance();
  gate.Advance();
  EXPECT_FALSE(gate.HasEnded(phase));
  const uint32_t young = gate.Enter();
  gate.Leave(old);
  gate.Advance();
  EXPECT_TRUE(gate.HasEnded(phase)) << "younger ones do not matter";
  gate.Leave(young);
}

TEST(VhdxImageTest, ANewImageIsSoundAndReadsZero) {
  for (const bool fixed : {false, true}) {
    for (const uint32_t sector : {512u, 4096u}) {
      CreateDiskOptions options = SmallDisk(fixed);
      options.logical_sector = sector;
      CrashMedium medium = NewMedium(options);
      EXPECT_EQ(Complaints(medium, true), "");
      auto image = Open(medium);
      EXPECT_EQ(image->info().logical_sector_bytes, sector);
      EXPECT_EQ(Read(*image, 0, kDiskBytes), Bytes(kDiskBytes, 0));
      EXPECT_TRUE(image->Close().ok());
    }
  }
}

TEST(VhdxImageTest, OpeningWithoutWritingChangesNothing) {
  for (const bool read_only : {false, true}) {
    CrashMedium medium = NewMedium();
    const SparseBytes before = medium.now;
    auto image = Open(medium, read_only);
    (void)Read(*image, 0, kDiskBytes);
    EXPECT_TRUE(image->Flush().ok());
    EXPECT_TRUE(image->Close().ok());
    EXPECT_TRUE(medium.now == before);
  }
}

TEST(VhdxImageTest, WriteGuidsChangeOnceASession) {
  CrashMedium medium = NewMedium();
  const auto header = [&medium] {
    CrashFile file(medium);
    return vhdx::ReadActiveHeader(file, medium.now.size()).value().header;
  };
  const auto first = header();
  auto image = Open(medium);
  Write(*image, 0, Bytes(kUnit, 1));
  const auto second = header();
  EXPECT_NE(first.file_write_guid, second.file_write_guid);
  EXPECT_NE(first.data_write_guid, second.data_write_guid);
  EXPECT_FALSE(second.log_guid.IsZero());
  Write(*image, kBlock, Bytes(kUnit, 1));
  ASSERT_TRUE(image->Flush().ok());
  EXPECT_EQ(header().data_write_guid, second.data_write_guid);
  ASSERT_TRUE(image->Close().ok());
  EXPECT_TRUE(header().log_guid.IsZero());
  EXPECT_EQ(header().data_write_guid, second.data_write_guid);
}

TEST(VhdxImageTest, ManyAllocationsShareOneFlush) {
  CrashMedium medium = NewMedium();
  auto image = Open(medium);
  Write(*image, 0, Bytes(kUnit, 1));
  ASSERT_TRUE(image->Flush().ok());
  const uint64_t before = medium.flushes;
  for (uint64_t block = 1; block < 8; ++block) Write(*image, block * kBlock, Bytes(kUnit, 2));
  ASSERT_TRUE(image->Flush().ok());
  EXPECT_EQ(medium.flushes - before, 1u);
}

TEST(VhdxImageTest, FreedSpaceServesOtherBlocksOnceItsReleaseIsDurable) {
  CrashMedium medium = NewMedium();
  auto image = Open(medium);
  Write(*image, 0, Bytes(kBlock, 7));
  Write(*image, kBlock, Bytes(kUnit, 8));
  ASSERT_TRUE(image->Flush().ok());
  const uint64_t place = PeekBat(medium, 0) & vhdx::kOffsetMask;
  const uint64_t size = medium.now.size();
  ASSERT_TRUE(image->Unmap(0, kBlock).ok());
  Write(*image, 2 * kBlock, Bytes(kUnit, 9));
  EXPECT_EQ(medium.now.size(), size + kBlock) << "not durable yet: the file grows";
  ASSERT_TRUE(image->Flush().ok());
  Write(*image, 3 * kBlock, Bytes(kUnit, 10));
  EXPECT_EQ(medium.now.size(), size + kBlock);
  ASSERT_TRUE(image->Flush().ok());
  EXPECT_EQ(PeekBat(medium, 3) & vhdx::kOffsetMask, place);
  EXPECT_EQ(PeekBat(medium, 0), vhdx::kUnmapped);
  Bytes expected(kBlock, 0);
  std::fill_n(expected.begin(), kUnit, 10);
  EXPECT_EQ(Read(*image, 3 * kBlock, kBlock), expected) << "nothing of the block before";
}

TEST(VhdxImageTest, ARequestUnderWayKeepsItsPlaceFromOthers) {
  CrashMedium medium = NewMedium();
  auto image = Open(medium);
  Write(*image, 0, Bytes(kBlock, 7));
  ASSERT_TRUE(image->Flush().ok());
  const uint64_t place = PeekBat(medium, 0) & vhdx::kOffsetMask;
  const uint32_t token = image->gate().Enter();  // a read of block 0 that takes its time
  ASSERT_TRUE(image->Unmap(0, kBlock).ok());
  ASSERT_TRUE(image->Flush().ok());
  ASSERT_TRUE(image->Flush().ok());
  EXPECT_NE(image->MapForWrite(kBlock, kUnit)->at(0).file_offset, place);
  image->gate().Leave(token);
  EXPECT_EQ(image->MapForWrite(2 * kBlock, kUnit)->at(0).file_offset, place);
}

TEST(VhdxImageTest, CloseCutsOffTheFreeEnd) {
  CrashMedium medium = NewMedium();
  const uint64_t empty = medium.now.size();
  auto image = Open(medium);
  for (uint64_t block = 0; block < 4; ++block) Write(*image, block * kBlock, Bytes(kUnit, 1));
  ASSERT_TRUE(image->Unmap(kBlock, 3 * kBlock).ok());
  ASSERT_TRUE(image->Close().ok());
  EXPECT_EQ(medium.now.size(), empty + kBlock);
  EXPECT_EQ(Complaints(medium, true), "");
}

TEST(VhdxImageTest, AFailedFlushIsNeverForgotten) {
  CrashMedium medium = NewMedium();
  auto image = Open(medium);
  Write(*image, 0, Bytes(kUnit, 1));
  medium.fail_flushes = true;
  EXPECT_FALSE(image->Flush().ok());
  medium.fail_flushes = false;
  EXPECT_FALSE(image->Flush().ok()) << "the host may have dropped the data";
  EXPECT_FALSE(image->Close().ok()) << "the log stays: the next open looks at it";
}

// The host may have either header then. What the second attempt would write belongs to a log that
// one of them names.
TEST(VhdxImageTest, AFailedFlushOfTheHeaderIsNeverForgotten) {
  CrashMedium medium = NewMedium();
  auto image = Open(medium);
  int flushes = 0;
  std::vector<SparseBytes> cuts;
  medium.on_event = [&] {
    if (medium.at_flush) medium.fail_flushes = ++flushes == 2;
    if (flushes >= 2) cuts.push_back(medium.now);
  };
  EXPECT_FALSE(image->MapForWrite(0, kUnit).ok());
  EXPECT_EQ(flushes, 2);
  EXPECT_FALSE(image->MapForWrite(0, kUnit).ok());
  EXPECT_FALSE(image->Flush().ok());
  medium.on_event = nullptr;
  cuts.push_back(medium.now);
  for (const SparseBytes& cut : cuts) {
    CrashMedium after(cut);
    EXPECT_EQ(WhyNot(after), "");
  }
}

// A guest that writes while we flush: what came after the flush began is the next one's.
TEST(VhdxImageTest, AFlushEndsHoweverMuchIsWrittenMeanwhile) {
  for (const bool child : {false, true}) {
    CreateDiskOptions options = SmallDisk();
    options.size_bytes = uint64_t{1} << 40;
    CrashMedium base = NewMedium(options);
    CrashMedium medium = child ? NewChild(base, options) : NewMedium(options);
    auto image = Open(medium);
    uint64_t next = 0;  // further and further apart: each has a page of the BAT, and of a bitmap
    const auto dirty_one = [&] { Write(*image, next++ * (512 * kBlock), Bytes(kUnit, 1)); };
    for (int i = 0; i < 300; ++i) dirty_one();
    bool within = false;
    uint64_t flushes = 0;
    medium.on_event = [&] {
      if (!medium.at_flush || within || ++flushes > 60) return;
      within = true;
      dirty_one();
      within = false;
    };
    ASSERT_TRUE(image->Flush().ok());
    EXPECT_LT(flushes, 20u);
    medium.on_event = nullptr;
    CrashMedium after(medium.durable);
    auto again = Open(after, true);
    for (uint64_t i = 0; i < 300; ++i) {
      std::vector<ImageExtent> extents;
      again->MapLayer(i * (512 * kBlock), kUnit, &extents);
      ASSERT_EQ(extents.size(), 1u);
      ASSERT_EQ(extents[0].kind, ImageExtent::Kind::kData) << i;
    }
    again.reset();
    ASSERT_EQ(Complaints(after), "");
    ASSERT_TRUE(image->Close().ok());
    EXPECT_EQ(Complaints(medium), "");
  }
}

TEST(VhdxImageTest, AFailedWriteOfTheLogIsTriedAgain) {
  CrashMedium medium = NewMedium();
  auto image = Open(medium);
  Write(*image, 0, Bytes(kUnit, 1));
  medium.fail_writes = true;
  EXPECT_FALSE(image->Flush().ok());
  medium.fail_writes = false;
  EXPECT_TRUE(image->Flush().ok());
  EXPECT_TRUE(image->Close().ok());
  EXPECT_EQ(Complaints(medium), "");
  EXPECT_EQ(Read(*Open(medium), 0, kUnit), Bytes(kUnit, 1));
}

TEST(VhdxImageTest, TheLogGoesRoundManyTimes) {
  CrashMedium medium = NewMedium();
  auto image = Open(medium);
  for (int round = 0; round < 700; ++round) {  // an entry has two sectors, the log 256
    const uint64_t block = static_cast<uint64_t>(round) % 12;
    if (round % 2 == 0)
      Write(*image, block * kBlock, Bytes(kUnit, static_cast<uint8_t>(round)));
    else
      ASSERT_TRUE(image->Unmap((block - 1) * kBlock, kBlock).ok());
    ASSERT_TRUE(image->Flush().ok());
    if (round % 97 == 0) {
      CrashMedium after(medium.durable);
      ASSERT_EQ(Complaints(after), "") << round;
      ASSERT_NE(Open(after), nullptr) << round;
    }
  }
  ASSERT_TRUE(image->Close().ok());
  EXPECT_EQ(Complaints(medium, true), "");
}

TEST(VhdxImageTest, RegionTablesAreRepairedThroughTheLog) {
  for (const uint64_t table : vhdx::kRegionTableOffset) {
    CrashMedium medium = NewMedium();
    medium.now.Write(Bytes(16, 0xff), table + 32);
    EXPECT_NE(Complaints(medium), "");
    EXPECT_EQ(WhyNot(medium, true), "") << "the other copy serves";
    auto image = Open(medium);
    CrashMedium after(medium.durable);
    EXPECT_EQ(Complaints(after), "") << "already in the log";
    ASSERT_TRUE(image->Close().ok());
    EXPECT_EQ(Complaints(medium, true), "");
  }
}

TEST(VhdxImageTest, ASpaceThatAnUnmappedBlockRemembersIsItsOwn) {
  CrashMedium medium = NewMedium();
  medium.now.Resize(8 * kMiB);
  medium.now.Write(Bytes(kBlock, 0x77), 5 * kMiB);
  PokeBat(medium, 1, 5 * kMiB | vhdx::kUnmapped);
  auto image = Open(medium);
  EXPECT_EQ(Read(*image, kBlock, kUnit), Bytes(kUnit, 0));
  EXPECT_NE(image->MapForWrite(0, kUnit)->at(0).file_offset, 5 * kMiB);
  EXPECT_EQ(image->MapForWrite(kBlock, kUnit)->at(0).file_offset, 5 * kMiB);
  EXPECT_EQ(Read(*image, kBlock, kBlock), Bytes(kBlock, 0)) << "its old content does not come back";
}

// What a hostile file may have for a log: entries of our own making.
class CraftedLog {
 public:
  CraftedLog(CrashMedium& medium, uint32_t length) : medium_(medium) {
    medium.now.Resize(kAt + length);
    EditHeaders(medium, [&](vhdx::Header& header) {
      header.log_guid = guid_;
      header.log_offset = kAt;
      header.log_length = length;
    });
  }
  void Put(uint64_t place, uint64_t sequence, uint32_t tail, uint32_t pages = 0) {
    const uint64_t head = (64 + uint64_t{pages} * 32 + 4095) / 4096 * 4096;
    Bytes bytes(head + uint64_t{pages} * 4096, 0);
    vhdx::LogEntryHeader header = {};
    header.signature = vhdx::kLogEntrySignature;
    header.entry_length = static_cast<uint32_t>(bytes.size());
    header.tail = tail;
    header.sequence_number = sequence;
    header.descriptor_count = pages;
    header.log_guid = guid_;
    header.last_file_offset = kAt;
    vhdx::Store(bytes, 0, header);
    for (uint32_t i = 0; i < pages; ++i) {
      vhdx::DataDescriptor descriptor = {};
      descriptor.signature = vhdx::kDataDescriptorSignature;
      descriptor.file_offset = kBatAt;
      descriptor.sequence_number = sequence;
      vhdx::Store(bytes, 64 + uint64_t{i} * 32, descriptor);
      vhdx::DataSector sector = {};
      sector.signature = vhdx::kDataSectorSignature;
      sector.sequence_low = static_cast<uint32_t>(sequence);
      vhdx::Store(bytes, head + uint64_t{i} * 4096, sector);
    }
    vhdx::Store(bytes, 4, vhdx::StructureChecksum(bytes));
    medium_.now.Write(bytes, kAt + place);
  }
  /// The only entry: a range of zeroes.
  void PutZeroes(uint64_t offset, uint64_t length) {
    Bytes bytes(4096, 0);
    vhdx::LogEntryHeader header = {};
    header.signature = vhdx::kLogEntrySignature;
    header.entry_length = static_cast<uint32_t>(bytes.size());
    header.sequence_number = 1;
    header.descriptor_count = 1;
    header.log_guid = guid_;
    header.flushed_file_offset = kAt;
    header.last_file_offset = offset + length;
    vhdx::Store(bytes, 0, header);
    vhdx::Store(bytes, 64,
                vhdx::ZeroDescriptor{vhdx::kZeroDescriptorSignature, 0, length, offset, 1});
    vhdx::Store(bytes, 4, vhdx::StructureChecksum(bytes));
    medium_.now.Write(bytes, kAt);
  }

 private:
  static constexpr uint64_t kAt = 16 * kMiB;
  CrashMedium& medium_;
  const vmm::Guid guid_ = vmm::Guid::Random();
};

// Every entry of the second half names the first one as its tail, and is no part of its chain.
TEST(VhdxImageTest, AHostileLogCostsNoMoreThanItsLength) {
  CrashMedium medium = NewMedium();
  constexpr uint32_t kLogBytes = 64 * kMiB, kHalf = kLogBytes / 4096 / 2;
  CraftedLog log(medium, kLogBytes);
  for (uint32_t i = 0; i < kHalf; ++i) log.Put(uint64_t{i} * 4096, i + 1, 0);
  for (uint32_t i = kHalf; i < 2 * kHalf; ++i)
    log.Put(uint64_t{i} * 4096, uint64_t{1000000} + 2 * i, 0);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(WhyNot(medium), "");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3));
}

TEST(VhdxImageTest, AHostileLogTakesLittleMemory) {
  CrashMedium medium = NewMedium();
  CraftedLog(medium, 16 * kMiB).Put(0, 1, 0, 3000);
  EXPECT_EQ(WhyNot(medium), "") << "more than anybody writes";
  medium = NewMedium();
  CraftedLog(medium, 96 * kMiB).Put(0, 1, 0, 20000);
  EXPECT_NE(WhyNot(medium).find("64 MiB"), std::string::npos) << WhyNot(medium);
  EXPECT_NE(WhyNot(medium, false).find("64 MiB"), std::string::npos);
}

/// A log of one page that says more is zero than the host has: a hole is.
TEST(VhdxImageTest, AHostileLogTakesNoSpace) {
  CrashMedium medium = NewMedium();
  CraftedLog(medium, kMiB).PutZeroes(32 * kMiB, 256 * kMiB);
  medium.most_bytes = 64 * kMiB;
  EXPECT_EQ(WhyNot(medium, false), "");
  EXPECT_EQ(medium.now.size(), 288 * kMiB) << "it was replayed";
}

/// On a host that takes no space back: what it is asked to zero is counted.
class RigidFile final : public CrashFile {
 public:
  RigidFile(CrashMedium& medium, int& zeroed) : CrashFile(medium), zeroed_(zeroed) {}
  vmm::Result<void> Zero(uint64_t offset, uint64_t length, bool keep_space) override {
    ++zeroed_;
    return CrashFile::Zero(offset, length, keep_space);
  }
  bool can_release() const override { return false; }

 private:
  int& zeroed_;
};

TEST(VhdxImageTest, UnmapWritesNoZeroes) {
  CrashMedium medium = NewMedium();
  int zeroed = 0;
  auto image = OpenVhdxImage(std::make_unique<RigidFile>(medium, zeroed), false).value();
  EXPECT_TRUE(image->info().can_unmap);
  EXPECT_FALSE(image->info().unmapped_reads_zero) << "a part of a block stays";
  EXPECT_TRUE(Open(medium, true)->info().unmapped_reads_zero);
  Write(*image, 0, Bytes(2 * kBlock, 7));
  ASSERT_TRUE(image->Unmap(0, kBlock + kUnit).ok());
  EXPECT_EQ(zeroed, 0);
  EXPECT_EQ(Read(*image, 0, kBlock), Bytes(kBlock, 0));
  EXPECT_EQ(Read(*image, kBlock, kUnit), Bytes(kUnit, 7));
  ASSERT_TRUE(image->Flush().ok());
  Write(*image, 3 * kBlock, Bytes(kUnit, 9));  // takes that space
  EXPECT_EQ(Read(*image, 3 * kBlock + kUnit, kUnit), Bytes(kUnit, 0));
  ASSERT_TRUE(image->Close().ok());
  EXPECT_EQ(Complaints(medium), "");
  // The guest of a raw disk counts on zeroes.
  medium.now.Resize(kMiB);
  const auto raw = OpenRawImage(std::make_unique<RigidFile>(medium, zeroed), false, {}).value();
  EXPECT_FALSE(raw->info().can_unmap);
  EXPECT_TRUE(
      OpenRawImage(std::make_unique<CrashFile>(medium), false, {}).value()->info().can_unmap);
}

// Random operations against a plain array, with closes and reopens in between.
TEST(VhdxImageTest, BehavesLikeAnArray) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    std::mt19937_64 random(seed);
    const bool fixed = seed % 4 == 0;
    CreateDiskOptions options = SmallDisk(fixed);
    options.block_bytes = seed % 3 == 0 ? 2u << 20 : 1u << 20;
    options.size_bytes = kDiskBytes - (seed % 5) * 512;  // the last block may be a part of one
    CrashMedium medium = NewMedium(options);
    const uint64_t disk = options.size_bytes;
    Bytes model(disk, 0);
    auto image = Open(medium);
    for (int step = 0; step < 60; ++step) {
      const uint64_t length = (1 + random() % 64) * 512 * (random() % 8 == 0 ? 100 : 1);
      const uint64_t offset = random() % ((disk - length) / 512 + 1) * 512;
      const auto at = model.begin() + static_cast<ptrdiff_t>(offset);
      switch (random() % 8) {
        case 0:
        case 1:
        case 2: {
          const Bytes bytes(length, static_cast<uint8_t>(random() | 1));
          Write(*image, offset, bytes);
          std::copy(bytes.begin(), bytes.end(), at);
          break;
        }
        case 3:
          if (!fixed) {  // a fixed disk ignores it
            ASSERT_TRUE(image->Unmap(offset, length).ok());
            std::fill_n(at, length, 0);
          }
          break;
        case 4:
          ASSERT_TRUE(image->WriteZeroes(offset, length).ok());
          std::fill_n(at, length, 0);
          break;
        case 5:
          ASSERT_TRUE(image->Flush().ok());
          break;
        case 6:
          ASSERT_TRUE(image->Close().ok());
          ASSERT_EQ(Complaints(medium, true), "");
          image = Open(medium);
          break;
        case 7:
          ASSERT_EQ(Read(*image, offset, length), Bytes(at, at + static_cast<ptrdiff_t>(length)))
              << "seed " << seed << " step " << step;
          break;
      }
    }
    ASSERT_TRUE(image->Close().ok());
    ASSERT_EQ(Complaints(medium, true), "") << seed;
    image = Open(medium, true);
    ASSERT_EQ(Read(*image, 0, disk), model) << seed;
  }
}

}  // namespace
}  // namespace kvmbus::virtdev
