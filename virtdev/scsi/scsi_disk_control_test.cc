// SPDX-License-Identifier: Apache-2.0
// The commands that touch no block, byte for byte.
#include <string>

#include "virtdev/scsi/scsi_inquiry.h"
#include "virtdev/scsi/scsi_test_disk.h"

namespace kvmbus::virtdev::scsi_test {
namespace {

Bytes FromText(const std::string& text) { return {text.begin(), text.end()}; }

Bytes Join(std::initializer_list<Bytes> parts) {
  Bytes all;
  for (const Bytes& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

Bytes First(const Bytes& bytes, size_t count) {
  return {bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(count)};
}

Bytes Sense(uint8_t key, uint8_t asc, uint8_t ascq) {
  return {0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0};
}

class Control : public ScsiDiskTest {};

TEST_F(Control, StandardInquiry) {
  const Outcome outcome = In({0x12, 0, 0, 0, 96, 0}, 96);
  ASSERT_TRUE(outcome.good());
  EXPECT_EQ(outcome.moved, 96u);
  EXPECT_EQ(outcome.data, Join({{0x00, 0x00, 0x05, 0x02, 91, 0x00, 0x00, 0x02},
                                FromText("Msft    Virtual Disk    1.0 "),
                                Bytes(60, 0)}));
}

TEST_F(Control, InquiryIsCutAtAllocationLengthAndBuffer) {
  EXPECT_EQ(In({0x12, 0, 0, 0, 36, 0}, 96).moved, 36u);
  EXPECT_EQ(In({0x12, 0, 0, 0, 96, 0}, 5).moved, 5u);
  EXPECT_EQ(In({0x12, 0, 0, 0, 0, 0}, 96).moved, 0u);
  const Outcome cut = In({0x12, 0, 0, 0, 36, 0}, 96);
  EXPECT_EQ(cut.data[36], 0xee);
  // A buffer of the wrong direction is not written.
  const Outcome out = Out({0x12, 0, 0, 0, 36, 0}, Bytes(36, 0x55));
  EXPECT_TRUE(out.good());
  EXPECT_EQ(out.moved, 0u);
  EXPECT_EQ(out.data, Bytes(36, 0x55));
}

TEST_F(Control, InquiryRefusesWhatItDoesNotKnow) {
  EXPECT_TRUE(In({0x12, 0, 0x80, 0, 96, 0}, 96).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(In({0x12, 2, 0, 0, 96, 0}, 96).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(In({0x12, 1, 0x99, 0, 96, 0}, 96).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(In({0x12, 0, 0, 0, 96}, 96).failed_with(scsi::kInvalidFieldInCdb));
}

TEST_F(Control, VpdSupportedPages) {
  const Outcome outcome = In({0x12, 1, 0x00, 0, 255, 0}, 255);
  ASSERT_TRUE(outcome.good());
  EXPECT_EQ(First(outcome.data, outcome.moved),
            (Bytes{0, 0, 0, 6, 0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2}));
}

TEST_F(Control, VpdSerialNumber) {
  const Outcome outcome = In({0x12, 1, 0x80, 0, 255, 0}, 255);
  ASSERT_TRUE(outcome.good());
  EXPECT_EQ(First(outcome.data, outcome.moved),
            Join({{0, 0x80, 0, 32}, FromText("a0a1a2a3a4a5a6a7a8a9aaabacadaeaf")}));
}

TEST_F(Control, VpdIdentification) {
  const Outcome outcome = In({0x12, 1, 0x83, 0, 255, 0}, 255);
  ASSERT_TRUE(outcome.good());
  EXPECT_EQ(First(outcome.data, outcome.moved),
            Join({{0, 0x83, 0, 48, 0x01, 0x01, 0, 24},
                  FromText("MSFT    "),
                  {0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7},
                  {0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf},
                  {0x01, 0x03, 0, 16, 0x60, 0x02, 0x24, 0x80},
                  {0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5},
                  {0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf}}));
}

TEST_F(Control, VpdBlockLimits) {
  Bytes expected(64, 0);
  expected[1] = 0xb0;
  expected[3] = 60;
  expected[4] = 1;  // WSNZ
  expected[7] = 8;  // granularity: 4096 / 512
  for (size_t i = 20; i < 24; ++i) expected[i] = 0xff;
  expected[26] = 0x10;  // 4096 descriptors
  expected[31] = 8;
  expected[32] = 0x80;
  expected[42] = 0x40;  // 8 MiB in 512-byte blocks: 0x4000
  const Outcome outcome = In({0x12, 1, 0xb0, 0, 64, 0}, 64);
  ASSERT_TRUE(outcome.good());
  EXPECT_EQ(outcome.data, expected);

  DiskInfo info = tests::FakeDisk::DefaultInfo(kDiskBytes);
  info.can_unmap = false;
  Build(info);
  for (size_t i = 20; i < 36; ++i) expected[i] = 0;
  EXPECT_EQ(In({0x12, 1, 0xb0, 0, 64, 0}, 64).data, expected);
}

TEST_F(Control, VpdCharacteristicsAndProvisioning) {
  Bytes characteristics(64, 0);
  characteristics[1] = 0xb1;
  characteristics[3] = 60;
  characteristics[5] = 1;  // does not rotate
  EXPECT_EQ(In({0x12, 1, 0xb1, 0, 64, 0}, 64).data, characteristics);
  EXPECT_EQ(In({0x12, 1, 0xb2, 0, 8, 0}, 8).data, (Bytes{0, 0xb2, 0, 4, 0, 0xe4, 2, 0}));

  DiskInfo info = tests::FakeDisk::DefaultInfo(kDiskBytes);
  info.unmapped_reads_zero = false;
  Build(info);
  EXPECT_EQ(In({0x12, 1, 0xb2, 0, 8, 0}, 8).data, (Bytes{0, 0xb2, 0, 4, 0, 0xe0, 2, 0}));
  info.can_unmap = false;
  Build(info);
  EXPECT_EQ(In({0x12, 1, 0xb2, 0, 8, 0}, 8).data, (Bytes{0, 0xb2, 0, 4, 0, 0, 0, 0}));
}

TEST_F(Control, AbsentUnitsInquiry) {
  const scsi::InquiryData named = scsi::AbsentInquiry(true);
  EXPECT_EQ(Bytes(named.begin(), named.end()), Join({{0x7f, 0x00, 0x05, 0x02, 91, 0x00, 0x00, 0x02},
                                                     FromText("Msft    Virtual Disk    1.0 "),
                                                     Bytes(60, 0)}));
  const scsi::InquiryData blank = scsi::AbsentInquiry(false);
  EXPECT_EQ(Bytes(blank.begin() + 8, blank.begin() + 36), Bytes(28, ' '));
  EXPECT_EQ(blank[0], 0x7f);
}

TEST_F(Control, RequestSenseTellsTheLastErrorOnce) {
  EXPECT_EQ(In({0x03, 0, 0, 0, 18, 0}, 18).data, Sense(0, 0, 0));
  EXPECT_TRUE(In({0xff, 0, 0, 0, 0, 0}, 0).failed_with(scsi::kInvalidOpcode));
  const Outcome first = In({0x03, 0, 0, 0, 252, 0}, 252);
  ASSERT_TRUE(first.good());
  EXPECT_EQ(First(first.data, first.moved), Sense(5, 0x20, 0));
  EXPECT_EQ(In({0x03, 0, 0, 0, 18, 0}, 18).data, Sense(0, 0, 0));
  EXPECT_TRUE(In({0x03, 1, 0, 0, 18, 0}, 18).failed_with(scsi::kInvalidFieldInCdb));
}

TEST_F(Control, ModeSense) {
  const Bytes caching = Join({{0x08, 18, 0x04}, Bytes(17, 0)});
  const Bytes control = {0x0a, 10, 0x02, 0x10, 0, 0x40, 0, 0, 0xff, 0xff, 0, 0};
  const std::pair<uint8_t, Bytes> kPages[] = {
      {0x08, caching}, {0x0a, control}, {0x3f, Join({caching, control})}};
  for (const auto& [page, expected] : kPages) {
    const auto bytes = static_cast<uint8_t>(expected.size());
    const Outcome six = In({0x1a, 0, page, 0, 255, 0}, 255);
    ASSERT_TRUE(six.good());
    EXPECT_EQ(First(six.data, six.moved),
              Join({{static_cast<uint8_t>(bytes + 3), 0, 0x10, 0}, expected}));
    const Outcome ten = In({0x5a, 0, page, 0, 0, 0, 0, 0, 255, 0}, 255);
    ASSERT_TRUE(ten.good());
    EXPECT_EQ(First(ten.data, ten.moved),
              Join({{0, static_cast<uint8_t>(bytes + 6), 0, 0x10, 0, 0, 0, 0}, expected}));
  }
  EXPECT_EQ(In({0x1a, 0, 0x3f, 0, 4, 0}, 4).data, (Bytes{35, 0, 0x10, 0}));
  EXPECT_TRUE(In({0x1a, 0, 0x3f, 0xff, 4, 0}, 4).good());
  // Changeable: nothing.
  EXPECT_EQ(In({0x1a, 0, 0x48, 0, 24, 0}, 24).data,
            Join({{23, 0, 0x10, 0, 0x08, 18}, Bytes(18, 0)}));
  EXPECT_EQ(In({0x1a, 0, 0x4a, 0, 16, 0}, 16).data,
            Join({{15, 0, 0x10, 0, 0x0a, 10}, Bytes(10, 0)}));
  EXPECT_EQ(In({0x1a, 0, 0x88, 0, 24, 0}, 24).data, Join({{23, 0, 0x10, 0}, caching}));
  EXPECT_TRUE(In({0x1a, 0, 0xc8, 0, 24, 0}, 24).failed_with(scsi::kSavingNotSupported));
  EXPECT_TRUE(In({0x1a, 0, 0x1c, 0, 24, 0}, 24).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(In({0x1a, 0, 0x08, 7, 24, 0}, 24).failed_with(scsi::kInvalidFieldInCdb));

  DiskInfo info = tests::FakeDisk::DefaultInfo(kDiskBytes);
  info.read_only = true;
  Build(info);
  EXPECT_EQ(In({0x1a, 0, 0x3f, 0, 4, 0}, 4).data, (Bytes{35, 0, 0x90, 0}));
}

TEST_F(Control, ModeSelectAcceptsWhatChangesNothing) {
  const Bytes caching = Join({{0x08, 18, 0x04}, Bytes(17, 0)});
  const Bytes six = Join({{0, 0, 0, 0}, caching});
  const Bytes ten = Join({Bytes(8, 0), caching});
  EXPECT_TRUE(Out({0x15, 0x10, 0, 0, 24, 0}, six).good());
  EXPECT_EQ(Out({0x55, 0x10, 0, 0, 0, 0, 0, 0, 28, 0}, ten).moved, 28u);
  EXPECT_TRUE(Out({0x15, 0x10, 0, 0, 0, 0}).good());

  // All that MODE SENSE told, sent back.
  const Bytes control = {0x0a, 10, 0x02, 0x10, 0, 0x40, 0, 0, 0xff, 0xff, 0, 0};
  EXPECT_TRUE(Out({0x15, 0x10, 0, 0, 36, 0}, Join({six, control})).good());
  Bytes descriptor_sense = Join({six, control});
  descriptor_sense[26] |= 0x04;
  EXPECT_TRUE(
      Out({0x15, 0x10, 0, 0, 36, 0}, descriptor_sense).failed_with(scsi::kInvalidFieldInList));
  EXPECT_TRUE(Out({0x15, 0x10, 0, 0, 6, 0}, Bytes{0, 0, 0, 0, 0x1c, 0})
                  .failed_with(scsi::kInvalidFieldInList));

  Bytes no_cache = six;
  no_cache[6] = 0;
  EXPECT_TRUE(Out({0x15, 0x10, 0, 0, 24, 0}, no_cache).failed_with(scsi::kInvalidFieldInList));
  Bytes descriptor = six;
  descriptor[3] = 8;
  EXPECT_TRUE(Out({0x15, 0x10, 0, 0, 24, 0}, descriptor).failed_with(scsi::kInvalidFieldInList));
  EXPECT_TRUE(Out({0x15, 0x11, 0, 0, 24, 0}, six).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(Out({0x15, 0x00, 0, 0, 24, 0}, six).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(
      Out({0x15, 0x10, 0, 0, 24, 0}, Bytes(10)).failed_with(scsi::kParameterListLengthError));
  EXPECT_TRUE(Out({0x15, 0x10, 0, 0, 23, 0}, six).failed_with(scsi::kParameterListLengthError));
  EXPECT_TRUE(
      Run({0x15, 0x10, 0, 0, 24, 0}, true, six).failed_with(scsi::kParameterListLengthError));
  EXPECT_TRUE(Out({0x55, 0x10, 0, 0, 0, 0, 0, 0xff, 0xff, 0}, ten)
                  .failed_with(scsi::kParameterListLengthError));
}

TEST_F(Control, StartStopFlushes) {
  EXPECT_TRUE(Out({0x1b, 0, 0, 0, 1, 0}).good());
  EXPECT_TRUE(fake_->TakeSeen().empty());
  EXPECT_TRUE(Out({0x1b, 0, 0, 0, 0, 0}).good());
  EXPECT_EQ(fake_->TakeSeen(), (std::vector<Seen>{{Op::kFlush, 0, 0, false}}));
  EXPECT_TRUE(Out({0x1b, 1, 0, 0, 0, 0}).good()) << "done is more than begun";
  EXPECT_EQ(fake_->TakeSeen(), (std::vector<Seen>{{Op::kFlush, 0, 0, false}}));
  EXPECT_TRUE(Out({0x1b, 0, 0, 0, 2, 0}).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(Out({0x1b, 0, 0, 0, 0x10, 0}).failed_with(scsi::kInvalidFieldInCdb));
  fake_->InjectError(Op::kFlush, EIO);
  EXPECT_TRUE(Out({0x1b, 0, 0, 0, 0, 0}).failed_with(scsi::kWriteError));
}

TEST_F(Control, CommandsThatAlwaysHold) {
  for (const uint8_t opcode : {0x00, 0x16, 0x17, 0x1e}) {
    EXPECT_TRUE(Out({opcode, 0, 0, 0, 0, 0}).good()) << int{opcode};
  }
  for (const uint8_t opcode : {0x56, 0x57}) {
    EXPECT_TRUE(Out({opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0}).good()) << int{opcode};
  }
  EXPECT_TRUE(Out({0x1d, 0x04, 0, 0, 0, 0}).good());
  EXPECT_TRUE(Out({0x1d, 0x24, 0, 0, 0, 0}).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(Out({0x1d, 0x10, 0, 0, 4, 0}, Bytes(4)).failed_with(scsi::kInvalidFieldInCdb));
}

TEST_F(Control, CommandsThatDisksDoNotHave) {
  // LOG SENSE too: no guest asks for it while no mode page says that there is something in it.
  for (const uint8_t opcode : {0x43, 0x4d, 0x83, 0x84, 0x85, 0x89, 0xa1, 0xff}) {
    EXPECT_TRUE(Out({opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
                    .failed_with(scsi::kInvalidOpcode))
        << int{opcode};
  }
}

Bytes OperationCodes(uint8_t options, uint8_t opcode, uint16_t action, uint16_t allocation) {
  Bytes cdb(12);
  cdb[0] = 0xa3;
  cdb[1] = 0x0c;
  cdb[2] = options;
  cdb[3] = opcode;
  scsi::PutBe<uint16_t>(cdb, 4, action);
  scsi::PutBe<uint32_t>(cdb, 6, allocation);
  return cdb;
}

TEST_F(Control, ReportsTheOperationCodesItHas) {
  const Outcome all = In(OperationCodes(0, 0, 0, 4096), 4096);
  ASSERT_TRUE(all.good());
  ASSERT_EQ(all.moved, 4 + scsi::GetBe<uint32_t>(all.data, 0));
  ASSERT_EQ((all.moved - 4) % 8, 0u);
  for (size_t at = 4; at < all.moved; at += 8) {
    const uint8_t opcode = all.data[at];
    const bool has_action = all.data[at + 5] == 1;
    const uint16_t action = scsi::GetBe<uint16_t>(all.data, at + 2);
    const size_t cdb_bytes = scsi::GetBe<uint16_t>(all.data, at + 6);
    // What one command is said to be agrees, whichever way it is asked for.
    const Outcome one = In(OperationCodes(has_action ? 2 : 1, opcode, action, 256), 256);
    ASSERT_TRUE(one.good()) << int{opcode};
    EXPECT_EQ(one.moved, 4 + cdb_bytes);
    EXPECT_EQ(one.data[1], 3);
    EXPECT_EQ(scsi::GetBe<uint16_t>(one.data, 2), cdb_bytes);
    EXPECT_EQ(one.data[4], opcode);
    EXPECT_TRUE(!has_action || (one.data[5] & 0x1f) == action);
    EXPECT_EQ(In(OperationCodes(3, opcode, action, 256), 256).data, one.data);
    // And it is there indeed. (REPORT LUNS is the controller's.)
    if (opcode == 0xa0) continue;
    Bytes cdb(cdb_bytes);
    cdb[0] = opcode;
    cdb[1] = static_cast<uint8_t>(has_action ? action : 0);
    EXPECT_NE(In(cdb, 0).sense, scsi::kInvalidOpcode) << int{opcode};
  }
  for (unsigned opcode = 0; opcode < 256; ++opcode) {  // and no other
    bool listed = false;
    for (size_t at = 4; at < all.moved; at += 8) listed = listed || all.data[at] == opcode;
    const auto code = static_cast<uint8_t>(opcode);
    if (listed) continue;
    EXPECT_TRUE(In({code, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0)
                    .failed_with(scsi::kInvalidOpcode))
        << opcode;
  }
}

TEST_F(Control, OperationCodesInDetail) {
  EXPECT_EQ(First(In(OperationCodes(1, 0x42, 0, 256), 256).data, 14),
            (Bytes{0, 3, 0, 10, 0x42, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff, 0}));
  EXPECT_EQ(First(In(OperationCodes(0x81, 0x00, 0, 256), 256).data, 22),
            Join({{0, 0x83, 0, 6}, Bytes(6, 0), {0, 10}, Bytes(10, 0)}));
  EXPECT_EQ(In(OperationCodes(1, 0x4d, 0, 256), 256).moved, 4u);
  EXPECT_EQ(In(OperationCodes(1, 0x4d, 0, 4), 4).data, (Bytes{0, 1, 0, 0}));
  EXPECT_EQ(In(OperationCodes(3, 0x28, 7, 4), 4).data, (Bytes{0, 1, 0, 0})) << "it has no actions";
  EXPECT_EQ(In(OperationCodes(2, 0x5e, 9, 4), 4).data, (Bytes{0, 1, 0, 0}));
  const Outcome timed = In(OperationCodes(0x80, 0, 0, 4096), 4096);
  EXPECT_EQ((timed.moved - 4) % 20, 0u);
  EXPECT_EQ(timed.data[9], 2);
  EXPECT_TRUE(In(OperationCodes(1, 0x5e, 0, 256), 256).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(In(OperationCodes(2, 0x28, 0, 256), 256).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(In(OperationCodes(4, 0x28, 0, 256), 256).failed_with(scsi::kInvalidFieldInCdb));
  Bytes other = OperationCodes(0, 0, 0, 256);
  other[1] = 0x0d;
  EXPECT_TRUE(In(other, 256).failed_with(scsi::kInvalidFieldInCdb));

  DiskInfo info = tests::FakeDisk::DefaultInfo(kDiskBytes);
  info.can_unmap = false;
  Build(info);
  EXPECT_EQ(In(OperationCodes(1, 0x42, 0, 4), 4).data, (Bytes{0, 1, 0, 0}));
}

TEST_F(Control, ReadCapacity10) {
  EXPECT_EQ(In({0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 8).data, (Bytes{0, 0, 0x07, 0xff, 0, 0, 2, 0}));
  EXPECT_TRUE(In({0x25, 0, 0, 0, 0, 1, 0, 0, 0, 0}, 8).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(In({0x25, 0, 0, 0, 0, 1, 0, 0, 1, 0}, 8).good());
}

TEST_F(Control, ReadCapacity16) {
  const Outcome outcome = In({0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}, 32);
  ASSERT_TRUE(outcome.good());
  EXPECT_EQ(outcome.data,
            Join({{0, 0, 0, 0, 0, 0, 0x07, 0xff, 0, 0, 2, 0, 0, 3, 0xc0, 0}, Bytes(16, 0)}));
  EXPECT_EQ(In({0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0}, 32).moved, 12u);
  EXPECT_TRUE(In({0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}, 32)
                  .failed_with(scsi::kInvalidFieldInCdb));
}

TEST_F(Control, FourKilobyteSectors) {
  DiskInfo info = tests::FakeDisk::DefaultInfo(kDiskBytes);
  info.logical_sector_bytes = 4096;
  Build(info);
  EXPECT_EQ(In({0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 8).data, (Bytes{0, 0, 0, 0xff, 0, 0, 0x10, 0}));
  const Outcome sixteen = In({0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}, 32);
  EXPECT_EQ(sixteen.data[13], 0);
  const Outcome read = In({0x28, 0, 0, 0, 0, 3, 0, 0, 1, 0}, 4096);
  EXPECT_EQ(read.data, Content(3 * 4096, 4096));
}

TEST_F(Control, AResizeIsToldOnce) {
  fake_->Resize(2 * kDiskBytes);
  EXPECT_TRUE(Out({0x00, 0, 0, 0, 0, 0}).good()) << "nobody said that the size changed";
  disk_->NotifyResized();
  EXPECT_TRUE(In({0x12, 0, 0, 0, 36, 0}, 36).good()) << "INQUIRY consumes no attention";
  EXPECT_TRUE(Out({0x00, 0, 0, 0, 0, 0}).failed_with(scsi::kCapacityChanged));
  EXPECT_TRUE(Out({0x00, 0, 0, 0, 0, 0}).good());
  EXPECT_EQ(In({0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 8).data, (Bytes{0, 0, 0x0f, 0xff, 0, 0, 2, 0}));
  fake_->Resize(kDiskBytes);
  disk_->NotifyResized();
  EXPECT_EQ(In({0x03, 0, 0, 0, 18, 0}, 18).data, Sense(6, 0x2a, 9));
  EXPECT_TRUE(Out({0x00, 0, 0, 0, 0, 0}).good());
}

TEST_F(Control, StateIsKept) {
  EXPECT_TRUE(Out({0xff, 0, 0, 0, 0, 0}).failed_with(scsi::kInvalidOpcode));
  const ScsiDisk::State state = disk_->Save();
  EXPECT_EQ(state, (ScsiDisk::State{kSectors, scsi::kInvalidOpcode}));
  DiskInfo info = tests::FakeDisk::DefaultInfo(2 * kDiskBytes);
  Build(info);
  disk_->Restore(state);
  EXPECT_EQ(disk_->Save(), state);
  EXPECT_EQ(In({0x03, 0, 0, 0, 18, 0}, 18).data, Sense(6, 0x2a, 9)) << "it grew while saved";
  EXPECT_EQ(In({0x03, 0, 0, 0, 18, 0}, 18).data, Sense(5, 0x20, 0));
  disk_->Restore(state);
  disk_->Reset();
  EXPECT_EQ(disk_->Save(), (ScsiDisk::State{2 * kSectors, scsi::kNoSense}));
}

TEST_F(Control, DisksThatScsiCannotExpressAreRefused) {
  DiskInfo info = tests::FakeDisk::DefaultInfo(kDiskBytes);
  info.logical_sector_bytes = 520;
  EXPECT_FALSE(ScsiDisk::Create(std::make_shared<tests::FakeDisk>(info), {}).ok());
  info = tests::FakeDisk::DefaultInfo(kDiskBytes + 1);
  EXPECT_FALSE(ScsiDisk::Create(std::make_shared<tests::FakeDisk>(info), {}).ok());
  info = tests::FakeDisk::DefaultInfo(0);
  EXPECT_FALSE(ScsiDisk::Create(std::make_shared<tests::FakeDisk>(info), {}).ok());
  info = tests::FakeDisk::DefaultInfo(kDiskBytes);
  info.physical_sector_bytes = 256;
  EXPECT_FALSE(ScsiDisk::Create(std::make_shared<tests::FakeDisk>(info), {}).ok());
}

}  // namespace
}  // namespace kvmbus::virtdev::scsi_test
