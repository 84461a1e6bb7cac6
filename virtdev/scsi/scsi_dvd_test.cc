// SPDX-License-Identifier: Apache-2.0
// A DVD drive, byte for byte, and the tray between a host and a guest.
#include "virtdev/scsi/scsi_dvd.h"

#include <random>
#include <string>

#include "virtdev/scsi/scsi_test_disk.h"

namespace kvmbus::virtdev::scsi_test {
namespace {

Bytes FromText(const std::string& text) { return {text.begin(), text.end()}; }

Bytes Join(std::initializer_list<Bytes> parts) {
  Bytes all;
  for (const Bytes& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

Bytes First(const Outcome& outcome) {
  return {outcome.data.begin(), outcome.data.begin() + static_cast<ptrdiff_t>(outcome.moved)};
}

class Dvd : public ScsiDiskTest {
 protected:
  static constexpr uint32_t kBlocks = kDiskBytes / 2048;

  Dvd() {
    DiskInfo info = tests::FakeDisk::DefaultInfo(kDiskBytes);
    info.read_only = true;
    Build(info);
    drive_ = NewDrive();
    Insert();
    drive_->Reset();  // there from the beginning
    unit_ = drive_.get();
  }
  std::unique_ptr<ScsiDvd> NewDrive() {
    return std::make_unique<ScsiDvd>(vmm::MakeGuid("01020304-0506-0708-090a-0b0c0d0e0f10"),
                                     [this] { ++trays_opened_; });
  }
  void Insert() {
    (void)drive_->SetMedium(fake_);
    medium_ = fake_.get();
  }
  void Eject() {
    (void)drive_->SetMedium(nullptr);
    medium_ = nullptr;
  }
  Outcome Ready() { return Out({0x00, 0, 0, 0, 0, 0}); }
  Outcome Tray(bool open) {
    return Out({0x1b, 0, 0, 0, static_cast<uint8_t>(open ? 0x02 : 0x03), 0});
  }
  Outcome Prevent(uint8_t how) { return Out({0x1e, 0, 0, 0, how, 0}); }
  /// The next event's code, and the state of drive and disc.
  std::pair<int, int> Poll() {
    const Outcome outcome = In({0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0}, 8);
    EXPECT_TRUE(outcome.good());
    EXPECT_EQ(Bytes(outcome.data.begin(), outcome.data.begin() + 4), (Bytes{0, 6, 4, 0x10}));
    return {outcome.data[4], outcome.data[5]};
  }

  std::unique_ptr<ScsiDvd> drive_;
  unsigned trays_opened_ = 0;
};

constexpr std::pair<int, int> kNothingPresent = {0, 2}, kNothingAbsent = {0, 0};

TEST_F(Dvd, Inquiry) {
  EXPECT_EQ(
      First(In({0x12, 0, 0, 0, 96, 0}, 96)),
      Join({{0x05, 0x80, 0x05, 0x02, 31, 0, 0, 0}, FromText("Msft    Virtual DVD-ROM 1.0 ")}));
  EXPECT_EQ(In({0x12, 0, 0, 0, 5, 0}, 96).moved, 5u);
  EXPECT_EQ(First(In({0x12, 1, 0, 0, 96, 0}, 96)), (Bytes{5, 0, 0, 2, 0, 0x83}));
  EXPECT_EQ(First(In({0x12, 1, 0x83, 0, 96, 0}, 96)),
            Join({{5, 0x83, 0, 28, 1, 1, 0, 24},
                  FromText("MSFT    "),
                  {4, 3, 2, 1, 6, 5, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16}}));
  EXPECT_TRUE(In({0x12, 1, 0x80, 0, 96, 0}, 96).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(In({0x12, 0, 1, 0, 96, 0}, 96).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(In({0x12, 2, 0, 0, 96, 0}, 96).failed_with(scsi::kInvalidFieldInCdb));
}

TEST_F(Dvd, CapacityAndReads) {
  EXPECT_EQ(In({0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 8).data, (Bytes{0, 0, 1, 0xff, 0, 0, 8, 0}));
  EXPECT_EQ(In({0x28, 0, 0, 0, 0, 3, 0, 0, 2, 0}, 4096).data, Content(3 * 2048, 4096));
  EXPECT_EQ(In({0xa8, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0}, 4096).data, Content(3 * 2048, 4096));
  EXPECT_EQ(In({0x88, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0}, 4096).data,
            Content(3 * 2048, 4096));
  const Outcome cut = In({0x28, 0, 0, 0, 0, 0, 0, 0, 4, 0}, 5000);
  EXPECT_TRUE(cut.good());
  EXPECT_TRUE(cut.overrun);
  EXPECT_EQ(cut.moved, 4096u) << "whole blocks";
  EXPECT_EQ(In({0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 5000).moved, 2048u);
  EXPECT_EQ(In({0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 5000).moved, 0u);
  EXPECT_EQ(Out({0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, Bytes(2048)).moved, 0u);
  EXPECT_TRUE(In({0x28, 0, 0, 0, 1, 0xff, 0, 0, 2, 0}, 4096).failed_with(scsi::kLbaOutOfRange));
  EXPECT_TRUE(In({0x88, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 2, 0, 0}, 4096)
                  .failed_with(scsi::kLbaOutOfRange));
  EXPECT_TRUE(In({0x28, 1, 0, 0, 0, 0, 0, 0, 1, 0}, 2048).failed_with(scsi::kInvalidFieldInCdb));
  fake_->InjectError(Op::kRead, EIO);
  EXPECT_TRUE(In({0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 2048).failed_with(scsi::kReadError));
}

TEST_F(Dvd, AQueueOfTheDiscBeforeIsBusyForAMoment) {
  auto next = std::make_shared<tests::FakeDisk>(tests::FakeDisk::DefaultInfo(kDiskBytes));
  (void)drive_->SetMedium(next);
  EXPECT_TRUE(Ready().failed_with(scsi::kMediumMayHaveChanged));
  EXPECT_TRUE(In({0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 2048).ended_with(scsi::Status::kBusy));
  medium_ = nullptr;
  EXPECT_TRUE(In({0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 2048).ended_with(scsi::Status::kBusy));
}

TEST_F(Dvd, Toc) {
  const Bytes lead_out = {0, 0x14, 0xaa, 0, 0, 0, 2, 0};
  EXPECT_EQ(First(In({0x43, 0, 0, 0, 0, 0, 0, 0, 255, 0}, 255)),
            Join({{0, 18, 1, 1}, {0, 0x14, 1, 0, 0, 0, 0, 0}, lead_out}));
  EXPECT_EQ(First(In({0x43, 0, 0, 0, 0, 0, 0xaa, 0, 255, 0}, 255)),
            Join({{0, 10, 1, 1}, lead_out}));
  EXPECT_EQ(First(In({0x43, 2, 0, 0, 0, 0, 0, 0, 255, 0}, 255)),
            Join({{0, 18, 1, 1}, {0, 0x14, 1, 0, 0, 0, 2, 0}, {0, 0x14, 0xaa, 0, 0, 0, 8, 62}}));
  const Bytes sessions = {0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0};
  EXPECT_EQ(First(In({0x43, 0, 1, 0, 0, 0, 0, 0, 255, 0}, 255)), sessions);
  EXPECT_EQ(First(In({0x43, 0, 0, 0, 0, 0, 0, 0, 255, 0x40}, 255)), sessions) << "as ATAPI asks";
  EXPECT_EQ(In({0x43, 0, 0, 0, 0, 0, 0, 0, 12, 0}, 255).moved, 12u);
  EXPECT_TRUE(In({0x43, 0, 0, 0, 0, 0, 2, 0, 255, 0}, 255).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(In({0x43, 0, 2, 0, 0, 0, 0, 0, 255, 0}, 255).failed_with(scsi::kInvalidFieldInCdb));
}

TEST_F(Dvd, DiscAndTrack) {
  const Outcome disc = In({0x51, 0, 0, 0, 0, 0, 0, 0, 255, 0}, 255);
  EXPECT_EQ(First(disc), Join({{0, 32, 0x0e, 1, 1, 1, 1, 0x20}, Bytes(26)}));
  EXPECT_TRUE(In({0x51, 1, 0, 0, 0, 0, 0, 0, 255, 0}, 255).failed_with(scsi::kInvalidFieldInCdb));
  const Bytes track = Join({{0, 34, 1, 1, 0, 4, 1, 0}, Bytes(16), {0, 0, 2, 0}, Bytes(8)});
  EXPECT_EQ(First(In({0x52, 0, 0, 0, 1, 0xff, 0, 0, 255, 0}, 255)), track);
  EXPECT_EQ(First(In({0x52, 1, 0, 0, 0, 1, 0, 0, 255, 0}, 255)), track);
  EXPECT_EQ(First(In({0x52, 2, 0, 0, 0, 1, 0, 0, 255, 0}, 255)), track);
  EXPECT_TRUE(In({0x52, 0, 0, 0, 2, 0, 0, 0, 255, 0}, 255).failed_with(scsi::kLbaOutOfRange));
  EXPECT_TRUE(In({0x52, 1, 0, 0, 0, 2, 0, 0, 255, 0}, 255).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(In({0x52, 3, 0, 0, 0, 1, 0, 0, 255, 0}, 255).failed_with(scsi::kInvalidFieldInCdb));
}

TEST_F(Dvd, Configuration) {
  const Outcome all = In({0x46, 0, 0, 0, 0, 0, 0, 4, 0, 0}, 1024);
  ASSERT_TRUE(all.good());
  EXPECT_EQ(scsi::GetBe<uint32_t>(all.data, 0), all.moved - 4);
  EXPECT_EQ(scsi::GetBe<uint16_t>(all.data, 6), 0x0010);
  std::vector<uint16_t> codes;
  for (size_t at = 8; at < all.moved; at += 4u + all.data[at + 3])
    codes.push_back(scsi::GetBe<uint16_t>(all.data, at));
  EXPECT_EQ(codes, (std::vector<uint16_t>{0, 1, 2, 3, 0x10, 0x1e, 0x1f, 0x100, 0x105, 0x107}));
  EXPECT_EQ(First(In({0x46, 2, 0, 3, 0, 0, 0, 4, 0, 0}, 1024)),
            (Bytes{0, 0, 0, 12, 0, 0, 0, 0x10, 0, 3, 3, 4, 0x29, 0, 0, 0}));
  EXPECT_EQ(In({0x46, 2, 0x0f, 0, 0, 0, 0, 4, 0, 0}, 1024).moved, 8u) << "no such feature";
  EXPECT_TRUE(In({0x46, 3, 0, 0, 0, 0, 0, 4, 0, 0}, 64).failed_with(scsi::kInvalidFieldInCdb));
  const size_t current = In({0x46, 1, 0, 0, 0, 0, 0, 4, 0, 0}, 1024).moved;
  EXPECT_EQ(current, all.moved - 8) << "but for CDs";
  Eject();
  const Outcome empty = In({0x46, 1, 0, 0, 0, 0, 0, 4, 0, 0}, 1024);
  EXPECT_EQ(scsi::GetBe<uint16_t>(empty.data, 6), 0) << "no profile";
  EXPECT_LT(empty.moved, current);
}

TEST_F(Dvd, Structures) {
  const Outcome physical = In({0xad, 0, 0, 0, 0, 0, 0, 0, 0x08, 0x04, 0, 0}, 4096);
  ASSERT_TRUE(physical.good());
  EXPECT_EQ(physical.moved, 2052u);
  EXPECT_EQ(Bytes(physical.data.begin(), physical.data.begin() + 16),
            (Bytes{8, 2, 0, 0, 1, 0x0f, 1, 0, 0, 3, 0, 0, 0, 3, 1, 0xff}));
  EXPECT_EQ(First(In({0xad, 0, 0, 0, 0, 0, 0, 1, 0, 255, 0, 0}, 255)),
            (Bytes{0, 6, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(In({0xad, 0, 0, 0, 0, 0, 0, 4, 0, 100, 0, 0}, 255).moved, 100u);
  EXPECT_EQ(First(In({0xad, 0, 0, 0, 0, 0, 0, 0xff, 0, 255, 0, 0}, 255)),
            (Bytes{0, 14, 0, 0, 0, 0x40, 8, 4, 1, 0x40, 0, 8, 4, 0x40, 8, 4}));
  EXPECT_TRUE(
      In({0xad, 0, 0, 0, 0, 0, 1, 0, 0, 255, 0, 0}, 255).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(
      In({0xad, 0, 0, 0, 0, 0, 0, 2, 0, 255, 0, 0}, 255).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(
      In({0xad, 1, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0}, 255).failed_with(scsi::kInvalidFieldInCdb));
}

TEST_F(Dvd, PerformanceBufferAndStreaming) {
  EXPECT_EQ(First(In({0xac, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}, 255)),
            (Bytes{0, 0, 0,    20,   0, 0, 0, 0,    0, 0, 0,    0,
                   0, 0, 0x2b, 0x48, 0, 0, 1, 0xff, 0, 0, 0x2b, 0x48}));
  EXPECT_EQ(In({0xac, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 255).moved, 8u);
  EXPECT_EQ(In({0xac, 4, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0}, 255).moved, 8u) << "it writes nothing";
  EXPECT_TRUE(
      In({0xac, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0}, 255).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_EQ(First(In({0x5c, 0, 0, 0, 0, 0, 0, 0, 255, 0}, 255)),
            (Bytes{0, 10, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0}));
  EXPECT_EQ(Out({0xb6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 28, 0}, Bytes(28)).moved, 28u);
  EXPECT_TRUE(Out({0xb6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}).good());
  EXPECT_TRUE(Out({0xb6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 27, 0}, Bytes(28))
                  .failed_with(scsi::kParameterListLengthError));
  EXPECT_TRUE(Out({0xb6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 28, 0}, Bytes(27))
                  .failed_with(scsi::kParameterListLengthError));
}

TEST_F(Dvd, ModePages) {
  const Outcome all = In({0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 255, 0}, 255);
  EXPECT_EQ(all.moved, 8u + 12 + 12 + 10 + 26);
  EXPECT_EQ(scsi::GetBe<uint16_t>(all.data, 0), all.moved - 2);
  const Outcome capabilities = In({0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 255, 0}, 255);
  EXPECT_EQ(Bytes(capabilities.data.begin() + 8, capabilities.data.begin() + 24),
            (Bytes{0x2a, 24, 0x1b, 0, 0x70, 0, 0x29, 0, 0x2b, 0x48, 0, 0, 1, 0, 0x2b, 0x48}));
  ASSERT_TRUE(Prevent(1).good());
  EXPECT_EQ(In({0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 255, 0}, 255).data[14], 0x2b) << "locked";
  EXPECT_TRUE(In({0x1a, 0, 0x01, 0, 255, 0}, 255).good());
  EXPECT_TRUE(
      In({0x5a, 0, 0x08, 0, 0, 0, 0, 0, 255, 0}, 255).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(
      In({0x5a, 0, 0xea, 0, 0, 0, 0, 0, 255, 0}, 255).failed_with(scsi::kSavingNotSupported));
  Bytes list = Join({Bytes(8), {0x01, 10}, Bytes(10)});
  EXPECT_EQ(Out({0x55, 0x10, 0, 0, 0, 0, 0, 0, 20, 0}, list).moved, 20u);
  list[10] = 1;
  EXPECT_TRUE(
      Out({0x55, 0x10, 0, 0, 0, 0, 0, 0, 20, 0}, list).failed_with(scsi::kInvalidFieldInList));
  EXPECT_TRUE(Out({0x55, 0x10, 0, 0, 0, 0, 0, 2, 0, 0}, Bytes(512))
                  .failed_with(scsi::kParameterListLengthError));
}

TEST_F(Dvd, CommandsThatDrivesDoNotHave) {
  for (const uint8_t opcode : {0x04, 0x08, 0x0a, 0x16, 0x17, 0x2a, 0x2f, 0x35, 0x41, 0x42, 0x5e,
                               0x5f, 0x8a, 0x93, 0x9e, 0xa3, 0xaa, 0xff}) {
    EXPECT_TRUE(Out({opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
                    .failed_with(scsi::kInvalidOpcode))
        << int{opcode};
  }
  EXPECT_TRUE(In({0x46, 0, 0, 0, 0, 0}, 8).failed_with(scsi::kInvalidFieldInCdb)) << "too short";
}

// --- the disc

TEST_F(Dvd, AnEmptyDrive) {
  Eject();
  for (const Bytes& cdb :
       {Bytes{0x00, 0, 0, 0, 0, 0}, Bytes{0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0},
        Bytes{0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, Bytes{0x43, 0, 0, 0, 0, 0, 0, 0, 12, 0},
        Bytes{0x51, 0, 0, 0, 0, 0, 0, 0, 12, 0}, Bytes{0x52, 0, 0, 0, 0, 0, 0, 0, 12, 0},
        Bytes{0x5c, 0, 0, 0, 0, 0, 0, 0, 12, 0}, Bytes{0xad, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0},
        Bytes{0xac, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}, Bytes{0x1b, 0, 0, 0, 1, 0}}) {
    EXPECT_TRUE(In(cdb, 4096).failed_with(scsi::kNoMediumTrayClosed)) << int{cdb[0]};
  }
  EXPECT_TRUE(In({0x12, 0, 0, 0, 36, 0}, 36).good());
  EXPECT_TRUE(In({0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 255, 0}, 255).good());
  EXPECT_EQ(In({0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0}, 8).data, Bytes(8));
  EXPECT_TRUE(Tray(true).good());
  EXPECT_TRUE(Ready().failed_with(scsi::kNoMediumTrayOpen));
  EXPECT_EQ(In({0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0}, 8).data[1], 0x10);
  EXPECT_TRUE(Tray(false).good());
  EXPECT_TRUE(Ready().failed_with(scsi::kNoMediumTrayClosed));
}

TEST_F(Dvd, AnInsertedDiscIsAnAttentionAndAnEvent) {
  Eject();
  EXPECT_EQ(Poll(), (std::pair{3, 0}));
  EXPECT_EQ(Poll(), kNothingAbsent);
  EXPECT_TRUE(Ready().failed_with(scsi::kNoMediumTrayClosed));
  Insert();
  EXPECT_TRUE(In({0x12, 0, 0, 0, 36, 0}, 36).good());
  EXPECT_TRUE(In({0x46, 0, 0, 0, 0, 0, 0, 0, 8, 0}, 8).good());
  EXPECT_EQ(Poll(), (std::pair{2, 2})) << "no attention there";
  EXPECT_TRUE(Ready().failed_with(scsi::kMediumMayHaveChanged));
  EXPECT_TRUE(Ready().good());
  EXPECT_EQ(Poll(), kNothingPresent);
  // From disc to disc: two events, in this order.
  Insert();
  EXPECT_EQ(In({0x03, 0, 0, 0, 18, 0}, 18).data[12], 0x28) << "REQUEST SENSE tells it as well";
  EXPECT_TRUE(Ready().good());
  EXPECT_EQ(Poll(), (std::pair{3, 2}));
  EXPECT_EQ(Poll(), (std::pair{2, 2}));
  EXPECT_EQ(Poll(), kNothingPresent);
  // In and out again before the guest looked: it never was there.
  Insert();
  Eject();
  EXPECT_EQ(Poll(), (std::pair{3, 0}));
  EXPECT_EQ(Poll(), kNothingAbsent);
  EXPECT_TRUE(Ready().failed_with(scsi::kNoMediumTrayClosed));
}

TEST_F(Dvd, EventsArePolledForAlone) {
  Eject();
  EXPECT_TRUE(In({0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8, 0}, 8).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_EQ(First(In({0x4a, 1, 0, 0, 0x40, 0, 0, 0, 8, 0}, 8)), (Bytes{0, 2, 0x80, 0x10}));
  EXPECT_EQ(In({0x4a, 1, 0, 0, 0x10, 0, 0, 0, 4, 0}, 8).moved, 4u);
  EXPECT_EQ(In({0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0}, 7).moved, 7u);
  EXPECT_EQ(Poll(), (std::pair{3, 0})) << "an event that was cut short is not gone";
}

TEST_F(Dvd, TheGuestMovesTheTray) {
  EXPECT_TRUE(Tray(false).good()) << "closed already";
  EXPECT_EQ(Poll(), kNothingPresent);
  EXPECT_TRUE(Tray(true).good());
  EXPECT_EQ(trays_opened_, 1u);
  EXPECT_TRUE(Ready().failed_with(scsi::kNoMediumTrayOpen));
  EXPECT_EQ(Poll(), (std::pair{3, 1}));
  EXPECT_TRUE(Tray(true).good()) << "open already";
  EXPECT_EQ(trays_opened_, 1u);
  drive_->Reset();
  EXPECT_TRUE(Ready().failed_with(scsi::kNoMediumTrayOpen)) << "no reset moves it";
  // The same disc comes back in.
  EXPECT_TRUE(Tray(false).good());
  EXPECT_TRUE(Ready().failed_with(scsi::kMediumMayHaveChanged));
  EXPECT_TRUE(Ready().good());
  EXPECT_EQ(Poll(), (std::pair{2, 2}));
  EXPECT_TRUE(Out({0x1b, 1, 0, 0, 0, 0}).good()) << "stop";
  EXPECT_TRUE(Out({0x1b, 0, 0, 0, 1, 0}).good()) << "start";
  EXPECT_TRUE(Out({0x1b, 0, 0, 0, 0x32, 0}).good()) << "sleep, which ejects nothing";
  EXPECT_TRUE(Ready().good());
}

TEST_F(Dvd, ALockedTray) {
  EXPECT_FALSE(drive_->IsHeld());
  EXPECT_TRUE(drive_->RequestRemoval()) << "nobody holds it";
  EXPECT_TRUE(Prevent(1).good());
  EXPECT_TRUE(drive_->IsHeld());
  EXPECT_TRUE(Tray(true).failed_with(scsi::kMediumRemovalPrevented));
  EXPECT_TRUE(Prevent(3).good());
  EXPECT_TRUE(Prevent(0).good());
  EXPECT_TRUE(Tray(true).failed_with(scsi::kMediumRemovalPrevented)) << "persistently";
  // A polite host asks, and hears when the guest did it.
  EXPECT_FALSE(drive_->RequestRemoval());
  EXPECT_FALSE(drive_->RequestRemoval());
  EXPECT_EQ(Poll(), (std::pair{1, 2}));
  EXPECT_EQ(Poll(), kNothingPresent);
  EXPECT_TRUE(Prevent(2).good());
  EXPECT_FALSE(drive_->IsHeld());
  EXPECT_TRUE(Tray(true).good());
  EXPECT_EQ(trays_opened_, 1u);
  EXPECT_TRUE(drive_->RequestRemoval());
  EXPECT_EQ(Poll(), (std::pair{3, 1}));
}

TEST_F(Dvd, AForcedEject) {
  EXPECT_TRUE(Prevent(1).good());
  EXPECT_FALSE(drive_->RequestRemoval());
  Eject();
  EXPECT_EQ(Poll(), (std::pair{3, 0})) << "the request is moot";
  EXPECT_EQ(Poll(), kNothingAbsent);
  EXPECT_TRUE(Ready().failed_with(scsi::kNoMediumTrayClosed));
  EXPECT_TRUE(Tray(true).good()) << "the lock went with the disc";
  Insert();
  EXPECT_TRUE(Ready().failed_with(scsi::kMediumMayHaveChanged)) << "and the tray closed";
  EXPECT_TRUE(Ready().good());
  EXPECT_TRUE(Prevent(1).good());
  Eject();
  EXPECT_TRUE(Prevent(1).good());
  EXPECT_TRUE(Tray(true).failed_with(scsi::kNoMediumRemovalPrevented));
}

TEST_F(Dvd, DiscsThatAreNone) {
  DiskInfo info = tests::FakeDisk::DefaultInfo(kDiskBytes);
  EXPECT_TRUE(ScsiDvd::CheckMedium(info).ok());
  info.size_bytes = 1024;
  EXPECT_FALSE(ScsiDvd::CheckMedium(info).ok());
  info.size_bytes = uint64_t{2048} << 32;
  EXPECT_FALSE(ScsiDvd::CheckMedium(info).ok());
  info.size_bytes -= 2048;
  EXPECT_TRUE(ScsiDvd::CheckMedium(info).ok());
  info.logical_sector_bytes = 4096;
  EXPECT_FALSE(ScsiDvd::CheckMedium(info).ok());
}

// --- saved state

TEST_F(Dvd, StateIsKept) {
  EXPECT_TRUE(Prevent(3).good());
  EXPECT_FALSE(drive_->RequestRemoval());
  EXPECT_TRUE(Out({0xff, 0, 0, 0, 0, 0}).failed_with(scsi::kInvalidOpcode));
  const ScsiDvd::State state = drive_->Save();
  EXPECT_EQ(state.blocks, kBlocks);
  drive_ = NewDrive();
  unit_ = drive_.get();
  (void)drive_->SetMedium(fake_);
  drive_->Restore(state);
  EXPECT_EQ(drive_->Save(), state);
  EXPECT_EQ(Poll(), (std::pair{1, 2}));
  EXPECT_TRUE(Tray(true).failed_with(scsi::kMediumRemovalPrevented));
  EXPECT_EQ(In({0x03, 0, 0, 0, 18, 0}, 18).data[12], 0x53);
}

TEST_F(Dvd, AnotherDiscThanTheSavedOne) {
  const ScsiDvd::State state = drive_->Save();
  drive_ = NewDrive();
  unit_ = drive_.get();
  medium_ = nullptr;
  drive_->Restore(state);
  EXPECT_TRUE(Ready().failed_with(scsi::kNoMediumTrayClosed));
  EXPECT_EQ(Poll(), (std::pair{3, 0}));
  const ScsiDvd::State empty = drive_->Save();
  EXPECT_EQ(empty.blocks, 0u);
  drive_ = NewDrive();
  unit_ = drive_.get();
  Insert();
  drive_->Restore(empty);
  EXPECT_TRUE(Ready().failed_with(scsi::kMediumMayHaveChanged));
  EXPECT_EQ(Poll(), (std::pair{2, 2}));
  ScsiDvd::State bad = state;
  bad.events = 8;
  EXPECT_FALSE(ScsiDvd::IsValid(bad));
}

/// Host and guest at random: a drive never says two things that cannot both be true.
TEST_F(Dvd, GeneratedSequencesAreConsistent) {
  std::mt19937 random(7);
  bool inside = true, open = false, locked = false, locked_for_good = false, attention = false;
  for (int step = 0; step < 4000; ++step) {
    const bool reachable = inside && !open;
    const bool held = locked || locked_for_good;
    switch (random() % 7) {
      case 0:
        Insert();
        inside = true;
        open = locked = false;
        attention = true;
        break;
      case 1:
        Eject();
        inside = open = locked = false;
        attention = false;
        break;
      case 2:
      case 3: {
        const bool want_open = random() % 2 == 0;
        const Outcome outcome = Tray(want_open);
        if (std::exchange(attention, false)) {
          ASSERT_TRUE(outcome.failed_with(scsi::kMediumMayHaveChanged));
        } else if (want_open && !open && held) {
          ASSERT_TRUE(outcome.failed_with(inside ? scsi::kMediumRemovalPrevented
                                                 : scsi::kNoMediumRemovalPrevented));
        } else {
          ASSERT_TRUE(outcome.good());
          attention = inside && open && !want_open;
          open = want_open;
        }
        break;
      }
      case 4: {
        const auto how = static_cast<uint8_t>(random() % 4);
        if (Prevent(how).good())
          ((how & 2) != 0 ? locked_for_good : locked) = (how & 1) != 0;
        else
          ASSERT_TRUE(std::exchange(attention, false));
        break;
      }
      case 5:
        ASSERT_EQ(drive_->RequestRemoval(), !(reachable && held));
        break;
      case 6: {
        const ScsiDvd::State state = drive_->Save();
        ASSERT_TRUE(ScsiDvd::IsValid(state));
        drive_->Restore(state);
        ASSERT_EQ(drive_->Save(), state);
        break;
      }
    }
    const Outcome ready = Ready();
    if (std::exchange(attention, false))
      ASSERT_TRUE(ready.failed_with(scsi::kMediumMayHaveChanged)) << step;
    else if (inside && !open)
      ASSERT_TRUE(ready.good()) << step;
    else
      ASSERT_TRUE(ready.failed_with(open ? scsi::kNoMediumTrayOpen : scsi::kNoMediumTrayClosed));
    const auto [code, status] = Poll();
    ASSERT_EQ(status, (open ? 1 : 0) | (inside && !open ? 2 : 0));
    ASSERT_TRUE(code != 1 || (inside && !open)) << "asked for a disc that is not there";
  }
}

}  // namespace
}  // namespace kvmbus::virtdev::scsi_test
