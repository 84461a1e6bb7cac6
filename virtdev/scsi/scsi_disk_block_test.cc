// SPDX-License-Identifier: Apache-2.0
// Reading, writing, verifying, provisioning: what reaches the disk, what comes back.
#include "virtdev/scsi/scsi_test_disk.h"
#include "vmm/memory/guest_memory.h"

namespace kvmbus::virtdev::scsi_test {
namespace {

/// A command block that names blocks, of the length that its operation code has.
Bytes BlockCdb(uint8_t opcode, uint64_t lba, uint32_t count, uint8_t flags = 0) {
  const auto be = [](Bytes& cdb, size_t at, size_t bytes, uint64_t value) {
    for (size_t i = 0; i < bytes; ++i)
      cdb[at + i] = static_cast<uint8_t>(value >> 8 * (bytes - 1 - i));
  };
  Bytes cdb;
  switch (opcode >> 5) {
    case 0:
      cdb.assign(6, 0);
      be(cdb, 1, 3, lba);
      cdb[4] = static_cast<uint8_t>(count);
      break;
    case 4:
      cdb.assign(16, 0);
      be(cdb, 2, 8, lba);
      be(cdb, 10, 4, count);
      break;
    case 5:
      cdb.assign(12, 0);
      be(cdb, 2, 4, lba);
      be(cdb, 6, 4, count);
      break;
    default:
      cdb.assign(10, 0);
      be(cdb, 2, 4, lba);
      be(cdb, 7, 2, count);
  }
  cdb[0] = opcode;
  cdb[1] |= flags;
  return cdb;
}

constexpr uint8_t kFua = 0x08;

class Block : public ScsiDiskTest, public ::testing::WithParamInterface<Timing> {
 protected:
  void SetUp() override { fake_->set_timing(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Timings, Block, ::testing::Values(Timing::kInline, Timing::kPosted));

TEST_P(Block, ReadsOfEveryLength) {
  for (const uint8_t opcode : {0x08, 0x28, 0xa8, 0x88}) {
    const Outcome outcome = In(BlockCdb(opcode, 5, 9), 9 * 512);
    ASSERT_TRUE(outcome.good()) << int{opcode};
    EXPECT_EQ(outcome.moved, 9u * 512);
    EXPECT_FALSE(outcome.overrun);
    EXPECT_EQ(outcome.data, Content(5 * 512, 9 * 512));
    EXPECT_EQ(fake_->TakeSeen(), (std::vector<Seen>{{Op::kRead, 5 * 512, 9 * 512, false}}));
  }
}

TEST_P(Block, WritesOfEveryLength) {
  uint8_t seed = 1;
  for (const uint8_t opcode : {0x0a, 0x2a, 0xaa, 0x8a}) {
    const Bytes data = Pattern(7 * 512, seed++);
    const Bytes before = Content(0, 3 * 512);
    const Bytes after = Content(10 * 512, 512);
    const Outcome outcome = Out(BlockCdb(opcode, 3, 7), data);
    ASSERT_TRUE(outcome.good()) << int{opcode};
    EXPECT_EQ(outcome.moved, 7u * 512);
    EXPECT_EQ(Content(3 * 512, 7 * 512), data);
    EXPECT_EQ(Content(0, 3 * 512), before);
    EXPECT_EQ(Content(10 * 512, 512), after);
    EXPECT_EQ(fake_->TakeSeen(), (std::vector<Seen>{{Op::kWrite, 3 * 512, 7 * 512, false}}));
  }
}

TEST_P(Block, SixByteFormsMean256ByZero) {
  const Outcome outcome = In(BlockCdb(0x08, 0, 0), 256 * 512);
  EXPECT_TRUE(outcome.good());
  EXPECT_EQ(outcome.moved, 256u * 512);
  EXPECT_EQ(outcome.data, Content(0, 256 * 512));
}

TEST_P(Block, LengthZeroElsewhereIsNothing) {
  for (const uint8_t opcode : {0x28, 0xa8, 0x88}) EXPECT_TRUE(In(BlockCdb(opcode, 5, 0), 0).good());
  for (const uint8_t opcode : {0x2a, 0xaa, 0x8a, 0x2e, 0x2f})
    EXPECT_TRUE(Out(BlockCdb(opcode, kSectors, 0)).good());
  EXPECT_TRUE(fake_->TakeSeen().empty());
}

TEST_P(Block, ForceUnitAccess) {
  EXPECT_TRUE(Out(BlockCdb(0x2a, 0, 1, kFua), Pattern(512, 9)).good());
  EXPECT_EQ(fake_->TakeSeen(), (std::vector<Seen>{{Op::kWrite, 0, 512, true}}));
  EXPECT_TRUE(In(BlockCdb(0x28, 0, 1, kFua), 512).good());
  EXPECT_EQ(fake_->TakeSeen(),
            (std::vector<Seen>{{Op::kFlush, 0, 0, false}, {Op::kRead, 0, 512, false}}));
  // In the 6-byte form the bit belongs to the address.
  EXPECT_TRUE(Out(BlockCdb(0x0a, 0x1fffff, 1), Pattern(512, 9)).failed_with(scsi::kLbaOutOfRange));
}

TEST_P(Block, BlocksBeyondTheEnd) {
  EXPECT_TRUE(In(BlockCdb(0x28, kSectors - 1, 1), 512).good());
  for (const uint8_t opcode : {0x28, 0xa8, 0x88}) {
    EXPECT_TRUE(In(BlockCdb(opcode, kSectors - 1, 2), 1024).failed_with(scsi::kLbaOutOfRange));
    EXPECT_TRUE(In(BlockCdb(opcode, 0xffffffff, 1), 512).failed_with(scsi::kLbaOutOfRange));
  }
  for (const uint8_t opcode : {0x88, 0x8a, 0x8f, 0x8e, 0x91, 0x93}) {
    EXPECT_TRUE(Run(BlockCdb(opcode, ~0ull, 0xffffffff), opcode == 0x88, Bytes(512))
                    .failed_with(scsi::kLbaOutOfRange))
        << int{opcode};
    EXPECT_TRUE(Run(BlockCdb(opcode, (1ull << 55) + 1, 1), opcode == 0x88, Bytes(512))
                    .failed_with(scsi::kLbaOutOfRange));
  }
  fake_->TakeSeen();
}

TEST_P(Block, BufferShorterThanTheBlocks) {
  const Outcome read = In(BlockCdb(0x28, 2, 8), 3 * 512 + 100);
  ASSERT_TRUE(read.good());
  EXPECT_TRUE(read.overrun);
  EXPECT_EQ(read.moved, 3u * 512);
  EXPECT_EQ(Bytes(read.data.begin(), read.data.begin() + 3 * 512), Content(2 * 512, 3 * 512));
  EXPECT_EQ(read.data[3 * 512], 0xee);
  const Bytes untouched = Content(4 * 512, 512);
  const Outcome write = Out(BlockCdb(0x2a, 2, 8), Pattern(2 * 512, 77));
  EXPECT_TRUE(write.overrun);
  EXPECT_EQ(write.moved, 2u * 512);
  EXPECT_EQ(Content(4 * 512, 512), untouched);
}

TEST_P(Block, BufferLongerThanTheBlocks) {
  const Outcome read = In(BlockCdb(0x28, 2, 1), 4096);
  EXPECT_FALSE(read.overrun);
  EXPECT_EQ(read.moved, 512u);
  EXPECT_EQ(read.data[512], 0xee);
}

TEST_P(Block, BufferOfTheWrongDirectionIsNoBuffer) {
  const Outcome read = Run(BlockCdb(0x28, 0, 1), false, Bytes(512, 0x33));
  EXPECT_EQ(read.moved, 0u);
  EXPECT_EQ(read.data, Bytes(512, 0x33));
  EXPECT_TRUE(Run(BlockCdb(0x2a, 0, 1), true, Bytes(512, 0x33)).overrun);
  EXPECT_TRUE(fake_->TakeSeen().empty());
}

TEST_P(Block, UnknownFlagsAreRefused) {
  for (const uint8_t flags : {0x20, 0xe0, 0x01}) {
    EXPECT_TRUE(In(BlockCdb(0x28, 0, 1, flags), 512).failed_with(scsi::kInvalidFieldInCdb));
    EXPECT_TRUE(Out(BlockCdb(0x8a, 0, 1, flags), Bytes(512)).failed_with(scsi::kInvalidFieldInCdb));
    EXPECT_TRUE(Out(BlockCdb(0x2f, 0, 1, flags)).failed_with(scsi::kInvalidFieldInCdb));
    EXPECT_TRUE(Out(BlockCdb(0x2e, 0, 1, flags), Bytes(512)).failed_with(scsi::kInvalidFieldInCdb));
  }
  EXPECT_TRUE(In(BlockCdb(0x28, 0, 1, 0x12), 512).good()) << "DPO and FUA_NV are hints";
}

TEST_P(Block, ReadOnlyDisk) {
  DiskInfo info = tests::FakeDisk::DefaultInfo(kDiskBytes);
  info.read_only = true;
  Build(info);
  for (const uint8_t opcode : {0x0a, 0x2a, 0xaa, 0x8a, 0x2e, 0x41, 0x93})
    EXPECT_TRUE(Out(BlockCdb(opcode, 0, 1), Bytes(512)).failed_with(scsi::kWriteProtected))
        << int{opcode};
  EXPECT_TRUE(Out({0x42, 0, 0, 0, 0, 0, 0, 0, 8, 0}, Bytes(8)).failed_with(scsi::kWriteProtected));
  EXPECT_TRUE(Out({0x04, 0, 0, 0, 0, 0}).failed_with(scsi::kWriteProtected));
  EXPECT_TRUE(Out(BlockCdb(0x35, 0, 0)).good());
  EXPECT_TRUE(In(BlockCdb(0x28, 0, 1, kFua), 512).good());
  EXPECT_EQ(fake_->TakeSeen(), (std::vector<Seen>{{Op::kRead, 0, 512, false}}));
}

TEST_P(Block, ErrorsOfTheDisk) {
  fake_->InjectError(Op::kRead, EIO);
  EXPECT_TRUE(In(BlockCdb(0x28, 0, 1), 512).failed_with(scsi::kReadError));
  fake_->InjectError(Op::kWrite, EIO);
  EXPECT_TRUE(Out(BlockCdb(0x2a, 0, 1), Bytes(512)).failed_with(scsi::kWriteError));
  fake_->InjectError(Op::kWrite, ENOSPC);
  EXPECT_TRUE(Out(BlockCdb(0x2a, 0, 1), Bytes(512)).failed_with(scsi::kSpaceAllocationFailed));
  fake_->InjectError(Op::kWrite, EROFS);
  EXPECT_TRUE(Out(BlockCdb(0x2a, 0, 1), Bytes(512)).failed_with(scsi::kWriteProtected));
  fake_->InjectError(Op::kFlush, EIO);
  EXPECT_TRUE(Out(BlockCdb(0x35, 0, 0)).failed_with(scsi::kWriteError));
  fake_->InjectError(Op::kFlush, EIO);
  EXPECT_TRUE(In(BlockCdb(0x28, 0, 1, kFua), 512).failed_with(scsi::kWriteError));
  EXPECT_TRUE(In(BlockCdb(0x28, 0, 1), 512).good()) << "an error is not for ever";
}

TEST_P(Block, SynchronizeCache) {
  for (const uint8_t opcode : {0x35, 0x91}) {
    EXPECT_TRUE(Out(BlockCdb(opcode, 0, 0)).good());
    EXPECT_TRUE(Out(BlockCdb(opcode, 4, 4, 0x02)).good()) << "IMMED";
    EXPECT_EQ(fake_->TakeSeen().size(), 2u);
    EXPECT_TRUE(Out(BlockCdb(opcode, kSectors, 1)).failed_with(scsi::kLbaOutOfRange));
    EXPECT_TRUE(fake_->TakeSeen().empty());
  }
}

TEST_P(Block, VerifyReadsTheMedium) {
  for (const uint8_t opcode : {0x2f, 0xaf, 0x8f}) {
    EXPECT_TRUE(Out(BlockCdb(opcode, 1, 100)).good());
    EXPECT_EQ(fake_->TakeSeen(), (std::vector<Seen>{{Op::kRead, 512, 32768, false},
                                                    {Op::kRead, 512 + 32768, 18432, false}}));
    fake_->InjectError(Op::kRead, EIO);
    EXPECT_TRUE(Out(BlockCdb(opcode, 1, 100)).failed_with(scsi::kReadError));
    fake_->TakeSeen();
  }
}

TEST_P(Block, VerifyComparesBytes) {
  constexpr uint8_t kAll = 0x02;
  Bytes same = Content(512, 100 * 512);
  const Outcome equal = Out(BlockCdb(0x2f, 1, 100, kAll), same);
  EXPECT_TRUE(equal.good());
  EXPECT_EQ(equal.moved, same.size());
  for (const size_t at : {size_t{0}, size_t{32768}, same.size() - 1}) {
    Bytes other = same;
    other[at] ^= 1;
    EXPECT_TRUE(
        Out(BlockCdb(0x2f, 1, 100, kAll), other).failed_with(scsi::kMiscompareDuringVerify));
  }
  same.pop_back();
  EXPECT_TRUE(Out(BlockCdb(0x2f, 1, 100, kAll), same).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(Out(BlockCdb(0x2f, 1, 1, 0x04)).failed_with(scsi::kInvalidFieldInCdb));
}

TEST_P(Block, VerifyComparesOneBlockWithAll) {
  constexpr uint8_t kOne = 0x06;
  const Bytes block = Pattern(512, 4);
  for (size_t i = 0; i < 80; ++i)
    std::copy(block.begin(), block.end(),
              fake_->content().begin() + static_cast<ptrdiff_t>((i + 10) * 512));
  EXPECT_TRUE(Out(BlockCdb(0x8f, 10, 80, kOne), block).good());
  EXPECT_TRUE(Out(BlockCdb(0x8f, 10, 81, kOne), block).failed_with(scsi::kMiscompareDuringVerify));
  EXPECT_TRUE(Out(BlockCdb(0x8f, 9, 2, kOne), block).failed_with(scsi::kMiscompareDuringVerify));
  EXPECT_TRUE(Out(BlockCdb(0x8f, 9, 2, kOne), Bytes(511)).failed_with(scsi::kInvalidFieldInCdb));
}

TEST_P(Block, WriteAndVerifyWritesAndReadsBack) {
  uint8_t seed = 50;
  for (const uint8_t opcode : {0x2e, 0xae, 0x8e}) {
    for (const uint8_t check : {0x00, 0x02}) {
      const Bytes data = Pattern(70 * 512, seed++);
      const Outcome outcome = Out(BlockCdb(opcode, 20, 70, check), data);
      ASSERT_TRUE(outcome.good());
      EXPECT_EQ(outcome.moved, data.size());
      EXPECT_EQ(Content(20 * 512, data.size()), data);
      EXPECT_EQ(fake_->TakeSeen(), (std::vector<Seen>{{Op::kWrite, 10240, 35840, true},
                                                      {Op::kRead, 10240, 32768, false},
                                                      {Op::kRead, 10240 + 32768, 3072, false}}));
    }
  }
  fake_->InjectError(Op::kRead, EIO);
  EXPECT_TRUE(Out(BlockCdb(0x2e, 0, 1), Bytes(512)).failed_with(scsi::kReadError));
  EXPECT_TRUE(Out(BlockCdb(0x2e, 0, 1, 0x06), Bytes(512)).failed_with(scsi::kInvalidFieldInCdb));
}

TEST_P(Block, WriteSameRepeatsTheBlock) {
  const Bytes block = Pattern(512, 9);
  for (const uint8_t opcode : {0x41, 0x93}) {
    const Bytes before = Content(0, 512);
    const Bytes after = Content(101 * 512, 512);
    const Outcome outcome = Out(BlockCdb(opcode, 1, 100), block);
    ASSERT_TRUE(outcome.good());
    EXPECT_EQ(outcome.moved, 512u);
    for (uint64_t i = 1; i <= 100; ++i) ASSERT_EQ(Content(i * 512, 512), block) << i;
    EXPECT_EQ(Content(0, 512), before);
    EXPECT_EQ(Content(101 * 512, 512), after);
    EXPECT_EQ(fake_->TakeSeen(), (std::vector<Seen>{{Op::kWrite, 512, 51200, false}}));
  }
}

TEST_P(Block, WriteSameOfManyBlocksGoesInPieces) {
  Build(tests::FakeDisk::DefaultInfo(16 << 20));
  fake_->set_timing(GetParam());
  const Bytes block = Pattern(512, 3);
  ASSERT_TRUE(Out(BlockCdb(0x93, 7, 5001), block).good());
  for (uint64_t i = 7; i < 5008; ++i) ASSERT_EQ(Content(i * 512, 512), block) << i;
  EXPECT_NE(Content(5008 * 512, 512), block);
  EXPECT_EQ(fake_->TakeSeen().size(), 3u);
  EXPECT_TRUE(Out(BlockCdb(0x93, 0, 16384), Bytes(512)).good());
  EXPECT_TRUE(Out(BlockCdb(0x93, 0, 16385), Bytes(512)).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(Out(BlockCdb(0x93, 0, 0), Bytes(512)).failed_with(scsi::kInvalidFieldInCdb));
}

TEST_P(Block, WriteSameOfZeroes) {
  constexpr uint8_t kUnmap = 0x08;
  constexpr uint8_t kNoData = 0x01;
  for (const uint8_t flags : {uint8_t{0}, kUnmap}) {
    ASSERT_TRUE(Out(BlockCdb(0x93, 1, 100, flags), Bytes(512)).good());
    EXPECT_EQ(fake_->TakeSeen(), (std::vector<Seen>{{Op::kWriteZeroes, 512, 51200, false}}));
  }
  EXPECT_EQ(Content(512, 51200), Bytes(51200, 0));
  // Data that are not zero are written, UNMAP or not.
  ASSERT_TRUE(Out(BlockCdb(0x41, 1, 1, kUnmap), Pattern(512, 6)).good());
  EXPECT_EQ(Content(512, 512), Pattern(512, 6));
  ASSERT_TRUE(Out(BlockCdb(0x93, 1, 1, kUnmap | kNoData)).good());
  EXPECT_EQ(Content(512, 512), Bytes(512, 0));
  EXPECT_TRUE(Out(BlockCdb(0x41, 1, 1, kNoData)).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(Out(BlockCdb(0x93, 1, 1, 0x10), Bytes(512)).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(Out(BlockCdb(0x93, 1, 1), Bytes(100)).failed_with(scsi::kInvalidFieldInCdb));
  DiskInfo info = tests::FakeDisk::DefaultInfo(kDiskBytes);
  info.can_unmap = false;
  Build(info);
  EXPECT_TRUE(Out(BlockCdb(0x93, 1, 1, kUnmap), Bytes(512)).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(Out(BlockCdb(0x93, 1, 1), Bytes(512)).good());
}

Bytes UnmapList(const std::vector<std::pair<uint64_t, uint32_t>>& extents) {
  Bytes list(8 + extents.size() * 16);
  scsi::PutBe<uint16_t>(list, 0, static_cast<uint16_t>(list.size() - 2));
  scsi::PutBe<uint16_t>(list, 2, static_cast<uint16_t>(list.size() - 8));
  for (size_t i = 0; i < extents.size(); ++i) {
    scsi::PutBe<uint64_t>(list, 8 + i * 16, extents[i].first);
    scsi::PutBe<uint32_t>(list, 16 + i * 16, extents[i].second);
  }
  return list;
}

Bytes UnmapCdb(size_t length) {
  return {0x42, 0, 0, 0, 0, 0, 0, static_cast<uint8_t>(length >> 8), static_cast<uint8_t>(length),
          0};
}

TEST_P(Block, UnmapReleasesEachExtentInOrder) {
  const Bytes list = UnmapList({{4, 2}, {100, 0}, {kSectors - 1, 1}, {0, 1}});
  const Outcome outcome = Out(UnmapCdb(list.size()), list);
  ASSERT_TRUE(outcome.good());
  EXPECT_EQ(outcome.moved, list.size());
  EXPECT_EQ(fake_->TakeSeen(), (std::vector<Seen>{{Op::kUnmap, 2048, 1024, false},
                                                  {Op::kUnmap, kDiskBytes - 512, 512, false},
                                                  {Op::kUnmap, 0, 512, false}}));
  EXPECT_TRUE(Out(UnmapCdb(0)).good());
  EXPECT_TRUE(Out(UnmapCdb(8), UnmapList({})).good());
}

TEST_P(Block, UnmapIgnoresAPartOfADescriptor) {
  Bytes list = UnmapList({{4, 2}, {0, 1}});
  list.resize(list.size() + 8, 0xff);
  scsi::PutBe<uint16_t>(list, 0, static_cast<uint16_t>(list.size() - 2));
  scsi::PutBe<uint16_t>(list, 2, static_cast<uint16_t>(list.size() - 8));
  EXPECT_TRUE(Out(UnmapCdb(list.size()), list).good());
  EXPECT_EQ(fake_->TakeSeen(),
            (std::vector<Seen>{{Op::kUnmap, 2048, 1024, false}, {Op::kUnmap, 0, 512, false}}));
  list.resize(8 + 15);
  scsi::PutBe<uint16_t>(list, 0, static_cast<uint16_t>(list.size() - 2));
  scsi::PutBe<uint16_t>(list, 2, static_cast<uint16_t>(list.size() - 8));
  EXPECT_TRUE(Out(UnmapCdb(list.size()), list).good());
  EXPECT_TRUE(fake_->TakeSeen().empty());
}

TEST_P(Block, UnmapOfManyExtents) {
  std::vector<std::pair<uint64_t, uint32_t>> extents;
  for (uint64_t i = 0; i < 4090; ++i) extents.emplace_back(i % kSectors, 1);
  const Bytes list = UnmapList(extents);
  fake_->set_timing(Timing::kInline);
  EXPECT_TRUE(Out(UnmapCdb(list.size()), list).good());
  EXPECT_EQ(fake_->TakeSeen().size(), 4090u);
  EXPECT_EQ(fake_->content(), Bytes(kDiskBytes, 0));
}

TEST_P(Block, UnmapChecksItsListFirst) {
  const Bytes good = UnmapList({{0, 1}, {8, 1}});
  const Bytes disk = fake_->content();
  const Bytes beyond = UnmapList({{0, 1}, {kSectors, 1}});
  EXPECT_TRUE(Out(UnmapCdb(beyond.size()), beyond).failed_with(scsi::kLbaOutOfRange));
  const Bytes overflow = UnmapList({{0, 1}, {~0ull, 2}});
  EXPECT_TRUE(Out(UnmapCdb(overflow.size()), overflow).failed_with(scsi::kLbaOutOfRange));
  for (const size_t field : {1, 3}) {
    Bytes wrong = good;
    wrong[field] = static_cast<uint8_t>(wrong[field] - 16);
    EXPECT_TRUE(Out(UnmapCdb(wrong.size()), wrong).failed_with(scsi::kInvalidFieldInList));
  }
  EXPECT_TRUE(Out(UnmapCdb(7), good).failed_with(scsi::kParameterListLengthError));
  EXPECT_TRUE(Out(UnmapCdb(200), good).failed_with(scsi::kParameterListLengthError));
  EXPECT_TRUE(Run(UnmapCdb(good.size()), true, good).failed_with(scsi::kParameterListLengthError));
  Bytes anchor = UnmapCdb(good.size());
  anchor[1] = 1;
  EXPECT_TRUE(Out(anchor, good).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(fake_->TakeSeen().empty());
  EXPECT_EQ(fake_->content(), disk);
  DiskInfo info = tests::FakeDisk::DefaultInfo(kDiskBytes);
  info.can_unmap = false;
  Build(info);
  EXPECT_TRUE(Out(UnmapCdb(good.size()), good).failed_with(scsi::kInvalidOpcode));
}

TEST_P(Block, AnErrorEndsTheUnmap) {
  const Bytes list = UnmapList({{0, 1}, {8, 1}, {16, 1}});
  fake_->InjectError(Op::kUnmap, EIO);
  EXPECT_TRUE(Out(UnmapCdb(list.size()), list).failed_with(scsi::kWriteError));
  EXPECT_EQ(fake_->TakeSeen().size(), 1u);
}

TEST_P(Block, FormatZeroesTheDisk) {
  EXPECT_TRUE(Out({0x04, 0, 0, 0, 0, 0}).good());
  EXPECT_EQ(fake_->content(), Bytes(kDiskBytes, 0));
  EXPECT_EQ(fake_->TakeSeen(), (std::vector<Seen>{{Op::kWriteZeroes, 0, kDiskBytes, false},
                                                  {Op::kFlush, 0, 0, false}}));
  EXPECT_TRUE(Out({0x04, 0x10, 0, 0, 0, 0}, Bytes(4)).failed_with(scsi::kInvalidFieldInCdb));
}

class BlockHeld : public ScsiDiskTest {};

TEST_F(BlockHeld, InterruptEndsALongCommandWithBusy) {
  fake_->set_timing(Timing::kHeld);
  Begin(BlockCdb(0x2f, 0, 1000), false, {});
  fake_->Release();
  EXPECT_EQ(outcome_.completions, 0u);
  EXPECT_EQ(fake_->held(), 1u) << "the next piece was started without being asked";
  command_.Interrupt();
  fake_->Release();
  EXPECT_EQ(outcome_.completions, 1u);
  EXPECT_EQ(outcome_.status, scsi::Status::kBusy);
  EXPECT_EQ(fake_->held(), 0u);
  // A command of one step is not worth it.
  Begin(BlockCdb(0x28, 0, 1), true, Bytes(512));
  command_.Interrupt();
  fake_->Release();
  EXPECT_TRUE(outcome_.good());
}

TEST(GuestBufferTest, PagesMergeAndAreMarked) {
  const vmm::MemoryRange ranges[] = {{0, 0x8000}, {0x8000, 0x8000}, {0x100000, 0x4000}};
  auto memory = *vmm::GuestMemory::Create(ranges);
  memory->StartDirtyTracking();
  GuestBuffer buffer;
  const uint64_t pfns[] = {6, 7, 8, 3, 0x100};
  ASSERT_TRUE(buffer.AppendPages(*memory, pfns, 100, 5 * 4096 - 100 - 50));
  EXPECT_EQ(buffer.size(), 5u * 4096 - 150);
  EXPECT_EQ(buffer.iov().size(), 4u) << "6 and 7 are neighbours; 8 is in another region";
  buffer.MarkDirty(2 * 4096);
  EXPECT_EQ(memory->TakeDirtyPages(), (std::vector<uint64_t>{6, 7, 8}));
  const Bytes data(3000, 0x5a);
  EXPECT_EQ(buffer.CopyOut(2 * 4096 - 100, data), 3000u);
  EXPECT_EQ(memory->TakeDirtyPages(), (std::vector<uint64_t>{8}));
  Bytes copy(3000);
  ASSERT_TRUE(memory->Read(0x8000, copy.data(), copy.size()));
  EXPECT_EQ(copy, data);
  EXPECT_TRUE(buffer.Equals(2 * 4096 - 100, data));
  EXPECT_FALSE(buffer.Equals(2 * 4096 - 101, data));
  buffer.Truncate(4096);
  EXPECT_EQ(buffer.size(), 4096u);
  EXPECT_EQ(buffer.CopyIn(4000, copy), 96u);
  EXPECT_FALSE(buffer.Equals(4000, data)) << "too few";
}

TEST(GuestBufferTest, RefusesWhatIsNotRam) {
  const vmm::MemoryRange ranges[] = {{0, 0x8000}};
  auto memory = *vmm::GuestMemory::Create(ranges);
  GuestBuffer buffer;
  const uint64_t outside[] = {7, 8};
  EXPECT_FALSE(buffer.AppendPages(*memory, outside, 0, 8192));
  const uint64_t wraps[] = {1ull << 52};
  EXPECT_FALSE(buffer.AppendPages(*memory, wraps, 0, 512));
  const uint64_t one[] = {1};
  EXPECT_FALSE(buffer.AppendPages(*memory, one, 4000, 512)) << "goes on to a page not given";
  EXPECT_FALSE(buffer.AppendPages(*memory, one, 4096, 1));
  EXPECT_EQ(buffer.size(), 0u);
  EXPECT_TRUE(buffer.AppendPages(*memory, one, 4000, 96));
}

}  // namespace
}  // namespace kvmbus::virtdev::scsi_test
