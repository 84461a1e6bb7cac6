// SPDX-License-Identifier: Apache-2.0
// DVD drives behind the controller, and reservations through it.
#include <thread>

#include "virtdev/synthetic/scsi/scsi_test_guest.h"

namespace kvmbus::virtdev::scsi_test {
namespace {

class DvdController : public ScsiControllerTest {
 protected:
  static constexpr uint8_t kLun = 3;

  static std::shared_ptr<FakeDisk> NewDisc(uint8_t content) {
    DiskInfo info = FakeDisk::DefaultInfo(kDiskBytes);
    info.read_only = true;
    info.disk_id.bytes[0] = content;
    auto disc = std::make_shared<FakeDisk>(info);
    std::fill(disc->content().begin(), disc->content().end(), content);
    return disc;
  }
  void BuildWithDrive(const std::shared_ptr<FakeDisk>& disc) {
    Build();
    ASSERT_TRUE(controller_->AttachDvd(kLun, disc).ok());
  }
  void Begin(const std::shared_ptr<FakeDisk>& disc) {
    BuildWithDrive(disc);
    Open(0);
    Handshake();
  }
  storvsc::Packet Do(const Bytes& cdb, const Buffer& buffer = {}, uint16_t channel = 0) {
    SrbOptions options;
    options.lun = kLun;
    return Execute(cdb, buffer, options, channel);
  }
  /// Sense key, code and qualifier; zero for GOOD.
  uint32_t SenseOf(const Bytes& cdb) {
    const storvsc::Packet reply = Do(cdb);
    if (reply.srb.srb_status == 1) return 0;
    EXPECT_EQ(reply.srb.srb_status, 0x84);
    const auto& sense = reply.srb.cdb_or_sense;
    return static_cast<uint32_t>(sense[2] << 16 | sense[12] << 8 | sense[13]);
  }
  uint32_t Ready() { return SenseOf({0, 0, 0, 0, 0, 0}); }
  void Lock(bool lock) { EXPECT_EQ(SenseOf({0x1e, 0, 0, 0, static_cast<uint8_t>(lock), 0}), 0u); }
  /// The first block, or nothing if the read failed.
  Bytes ReadBlock(uint16_t channel = 0) {
    const Buffer buffer = NewBuffer(2048);
    if (Do(Cdb10(0x28, 0, 1), buffer, channel).srb.srb_status != 1) return {};
    return CopyFromGuest(*memory_, buffer);
  }
  SyntheticScsiController::EjectDone Note() {
    return [this](const vmm::Result<std::shared_ptr<DiskIo>>& result) {
      ++answers_;
      if (result.ok()) {
        ejected_ = *result;
        error_ = vmm::Code::kOk;
      } else {
        error_ = result.error().code();
      }
    };
  }

  unsigned answers_ = 0;
  std::shared_ptr<DiskIo> ejected_;
  vmm::Code error_ = vmm::Code::kOk;
};

constexpr uint32_t kNoDisc = 0x023a01, kTrayOpen = 0x023a02, kChanged = 0x062800;

TEST_F(DvdController, AnEmptyDriveIsThere) {
  Begin(nullptr);
  const Buffer buffer = NewBuffer(96);
  EXPECT_EQ(Do({0x12, 0, 0, 0, 96, 0}, buffer).srb.transfer_length, 36u);
  EXPECT_EQ(CopyFromGuest(*memory_, buffer)[0], 5);
  EXPECT_EQ(Ready(), kNoDisc);
  EXPECT_TRUE(ReadBlock().empty());
  const Buffer luns = NewBuffer(64);
  EXPECT_EQ(Do({0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0}, luns).srb.transfer_length, 24u);
  EXPECT_EQ(controller_->AttachDvd(kLun, nullptr).error().code(), vmm::Code::kAlreadyExists);
  EXPECT_EQ(controller_->AttachDisk(kLun, NewDisk()).error().code(), vmm::Code::kAlreadyExists);
  EXPECT_EQ(controller_->AttachDvd(64, nullptr).error().code(), vmm::Code::kInvalidArgument);
}

TEST_F(DvdController, ADiscThatWasInIsNoChange) {
  Begin(NewDisc(0x11));
  EXPECT_EQ(Ready(), 0u);
  EXPECT_EQ(ReadBlock(), Bytes(2048, 0x11));
  EXPECT_EQ(disk_->queues_opened(), 0u);
}

TEST_F(DvdController, DiscsComeAndGoWhileItRuns) {
  const auto first = NewDisc(0x11), second = NewDisc(0x22);
  Begin(first);
  EXPECT_EQ(Control(Operation::kCreateSubChannels, 1).header.status, 0u);
  Open(1);
  EXPECT_EQ(ReadBlock(0), Bytes(2048, 0x11));
  EXPECT_EQ(ReadBlock(1), Bytes(2048, 0x11));
  EXPECT_EQ(first->open_queues(), 2u);
  std::shared_ptr<DiskIo> before;
  ASSERT_TRUE(controller_
                  ->InsertMedium(kLun, second,
                                 [&](std::shared_ptr<DiskIo> disc) { before = std::move(disc); })
                  .ok());
  EXPECT_EQ(before, nullptr) << "its queues are still there";
  Settle();
  EXPECT_EQ(before, first);
  EXPECT_EQ(first->open_queues(), 0u);
  EXPECT_EQ(Ready(), kChanged);
  EXPECT_EQ(ReadBlock(1), Bytes(2048, 0x22));
  EXPECT_EQ(ReadBlock(0), Bytes(2048, 0x22));
  EXPECT_EQ(channels_[0].waiting(), 0u) << "no unit came or went";
  controller_->EjectMedium(kLun, false, Note());
  Settle();
  EXPECT_EQ(answers_, 1u);
  EXPECT_EQ(ejected_, second);
  EXPECT_EQ(second->open_queues(), 0u);
  EXPECT_EQ(Ready(), kNoDisc);
  controller_->EjectMedium(kLun, false, Note());
  Settle();
  EXPECT_EQ(answers_, 2u);
  EXPECT_EQ(ejected_, nullptr);
}

TEST_F(DvdController, AReadUnderWayOutlivesItsDisc) {
  const auto disc = NewDisc(0x11);
  disc->set_timing(Timing::kHeld);
  Begin(disc);
  const Buffer buffer = NewBuffer(2048);
  SrbOptions options;
  options.lun = kLun;
  Push(5, Cdb10(0x28, 0, 1), buffer, options);
  Settle();
  controller_->EjectMedium(kLun, true, Note());
  Settle();
  EXPECT_EQ(answers_, 0u);
  EXPECT_EQ(disc->held(), 1u);
  disc->Release();
  Settle();
  EXPECT_EQ(answers_, 1u);
  const auto replies = channels_[0].Take();
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(ToPacket(replies[0]).srb.srb_status, 1);
  EXPECT_EQ(CopyFromGuest(*memory_, buffer), Bytes(2048, 0x11));
}

TEST_F(DvdController, AGuestThatHoldsTheDiscIsAsked) {
  Begin(NewDisc(0x11));
  Lock(true);
  controller_->EjectMedium(kLun, false, Note());
  Settle();
  EXPECT_EQ(answers_, 0u);
  const Buffer event = NewBuffer(8);
  EXPECT_EQ(Do({0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0}, event).srb.transfer_length, 8u);
  EXPECT_EQ(CopyFromGuest(*memory_, event)[4], 1) << "an eject request";
  EXPECT_EQ(controller_->InsertMedium(kLun, NewDisc(0x22), {}).error().code(),
            vmm::Code::kFailedPrecondition);
  Lock(false);
  EXPECT_EQ(SenseOf({0x1b, 0, 0, 0, 2, 0}), 0u);
  Settle();
  EXPECT_EQ(answers_, 1u);
  EXPECT_EQ(error_, vmm::Code::kOk);
  EXPECT_NE(ejected_, nullptr);
  EXPECT_EQ(Ready(), kNoDisc) << "the host closed the empty tray";
}

TEST_F(DvdController, AGuestThatDoesNotLetGo) {
  options_.eject_wait_ns = 1'000'000;
  Begin(NewDisc(0x11));
  Lock(true);
  controller_->EjectMedium(kLun, false, Note());
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  Settle();
  EXPECT_EQ(answers_, 1u);
  EXPECT_EQ(error_, vmm::Code::kFailedPrecondition);
  EXPECT_EQ(Ready(), 0u);
  // Once more, and then without asking.
  options_.eject_wait_ns = 0;
  controller_->EjectMedium(kLun, false, Note());
  controller_->EjectMedium(kLun, true, Note());
  Settle();
  EXPECT_EQ(answers_, 3u);
  EXPECT_EQ(error_, vmm::Code::kOk);
  EXPECT_EQ(Ready(), kNoDisc);
}

TEST_F(DvdController, WhoWaitsForADiscIsToldOfTheEnd) {
  Begin(NewDisc(0x11));
  Lock(true);
  controller_->EjectMedium(kLun, false, Note());
  ASSERT_TRUE(
      controller_
          ->DetachDisk(kLun, [&](std::shared_ptr<DiskIo> disc) { ejected_ = std::move(disc); })
          .ok());
  EXPECT_EQ(error_, vmm::Code::kCancelled);
  Settle();
  EXPECT_NE(ejected_, nullptr) << "the disc goes with its drive";
  ASSERT_TRUE(controller_->AttachDvd(kLun, NewDisc(0x22)).ok());
  Settle();
  (void)channels_[0].Take();
  Lock(true);
  controller_->EjectMedium(kLun, false, Note());
  controller_.reset();
  EXPECT_EQ(answers_, 2u);
  EXPECT_EQ(error_, vmm::Code::kCancelled);
}

TEST_F(DvdController, TheGuestsOwnEjectKeepsTheDiscOnTheTray) {
  const auto disc = NewDisc(0x11);
  Begin(disc);
  EXPECT_EQ(SenseOf({0x1b, 0, 0, 0, 2, 0}), 0u);
  EXPECT_EQ(Ready(), kTrayOpen);
  EXPECT_EQ(SenseOf({0x1b, 0, 0, 0, 3, 0}), 0u);
  EXPECT_EQ(Ready(), kChanged);
  EXPECT_EQ(ReadBlock(), Bytes(2048, 0x11));
}

TEST_F(DvdController, ArgumentsAreChecked) {
  Begin(nullptr);
  EXPECT_EQ(controller_->InsertMedium(0, NewDisc(1), {}).error().code(), vmm::Code::kNotFound);
  EXPECT_EQ(controller_->InsertMedium(9, NewDisc(1), {}).error().code(), vmm::Code::kNotFound);
  controller_->EjectMedium(0, true, Note());
  EXPECT_EQ(error_, vmm::Code::kNotFound);
  const auto small = std::make_shared<FakeDisk>(FakeDisk::DefaultInfo(512));
  EXPECT_EQ(controller_->InsertMedium(kLun, small, {}).error().code(), vmm::Code::kInvalidArgument);
  EXPECT_EQ(controller_->AttachDvd(4, small).error().code(), vmm::Code::kInvalidArgument);
}

TEST_F(DvdController, StateIsKept) {
  const auto disc = NewDisc(0x11);
  Begin(disc);
  Lock(true);
  controller_->EjectMedium(kLun, false, Note());
  controller_->Stop();
  const std::string saved = *controller_->Save();
  controller_.reset();
  const auto restore = [&](const std::shared_ptr<FakeDisk>& medium) {
    controller_.reset();
    Settle();
    BuildWithDrive(medium);
    std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> endpoints;
    endpoints.emplace_back(0, channels_[0].Endpoint());
    const auto restored = controller_->Restore(saved, std::move(endpoints));
    EXPECT_TRUE(restored.ok()) << restored.error().ToString();
  };
  restore(disc);
  EXPECT_EQ(*controller_->Save(), saved);
  controller_->Start();
  EXPECT_EQ(SenseOf({0x1b, 0, 0, 0, 2, 0}), 0x055302u) << "still locked";
  controller_->Stop();
  restore(NewDisc(0x22));
  controller_->Start();
  EXPECT_EQ(Ready(), kChanged);
  EXPECT_EQ(SenseOf({0x1b, 0, 0, 0, 2, 0}), 0u);
  controller_.reset();
  // A machine that has a disk there instead.
  Build();
  ASSERT_TRUE(controller_->AttachDisk(kLun, NewDisk()).ok());
  EXPECT_EQ(controller_->Restore(saved, {}).error().code(), vmm::Code::kFailedPrecondition);
}

// --- reservations

Bytes ReserveOut(uint8_t action, uint8_t type) {
  return {0x5f, action, type, 0, 0, 0, 0, 0, 24, 0};
}

TEST_F(DvdController, ReservationsOfTwoMachines) {
  const auto shared = std::make_shared<PersistentReservations>();
  ScsiDisk::Options other;
  other.reservations = shared;
  other.initiator.bytes.fill(7);
  other.shared = true;
  Begin(nullptr);
  ASSERT_TRUE(controller_->AttachDisk(1, NewDisk(), other).ok());
  Settle();
  (void)channels_[0].Take();
  vmm::Guid first;
  first.bytes.fill(9);
  PersistentReservations::OutRequest request;
  request.action_key = 0x99;
  ASSERT_TRUE(shared->HandleOut(first, request).good());
  request = {};
  request.action = 1;
  request.type = 3;
  request.key = 0x99;
  ASSERT_TRUE(shared->HandleOut(first, request).good());
  SrbOptions options;
  options.lun = 1;
  const Buffer buffer = NewBuffer(512);
  const storvsc::Packet conflict = Execute(Cdb10(0x28, 0, 1), buffer, options);
  EXPECT_EQ(conflict.srb.srb_status, 0x04) << "no sense comes with it";
  EXPECT_EQ(conflict.srb.scsi_status, 0x18);
  EXPECT_EQ(conflict.srb.transfer_length, 0u);
  controller_->Stop();
  const std::string saved = *controller_->Save();
  EXPECT_EQ(saved.find(std::string(16, '\x09')), std::string::npos)
      << "a shared disk's reservations are not this machine's";
}

TEST_F(DvdController, ReservationsAreSavedWithTheirDisk) {
  Begin(nullptr);
  const Buffer list = NewBuffer(24);
  Bytes bytes(24);
  bytes[15] = 0x42;
  CopyToGuest(*memory_, list, bytes);
  SrbOptions out;
  out.data_in = false;
  EXPECT_EQ(Execute(ReserveOut(0, 0), list, out).srb.srb_status, 1);
  controller_->Stop();
  const std::string saved = *controller_->Save();
  controller_.reset();
  Settle();
  BuildWithDrive(nullptr);
  std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> endpoints;
  endpoints.emplace_back(0, channels_[0].Endpoint());
  ASSERT_TRUE(controller_->Restore(saved, std::move(endpoints)).ok());
  EXPECT_EQ(*controller_->Save(), saved);
  controller_->Start();
  const Buffer keys = NewBuffer(16);
  EXPECT_EQ(Execute({0x5e, 0, 0, 0, 0, 0, 0, 0, 16, 0}, keys).srb.srb_status, 1);
  EXPECT_EQ(CopyFromGuest(*memory_, keys),
            (Bytes{0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0x42}));
}

}  // namespace
}  // namespace kvmbus::virtdev::scsi_test
