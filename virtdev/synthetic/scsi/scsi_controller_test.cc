// SPDX-License-Identifier: Apache-2.0
// Requests under load: data, back-pressure, disks that come and go, stops, saves, threads.
#include "virtdev/synthetic/scsi/scsi_controller.h"

#include <set>
#include <thread>

#include "virtdev/synthetic/scsi/scsi_test_guest.h"

namespace kvmbus::virtdev::scsi_test {
namespace {

class Controller : public ScsiControllerTest {
 protected:
  std::set<uint64_t> TakeIds(uint16_t channel = 0) {
    std::set<uint64_t> ids;
    for (const auto& sent : channels_[channel].Take()) {
      EXPECT_TRUE(ids.insert(sent.transaction_id).second) << "answered twice";
      EXPECT_EQ(ToPacket(sent).srb.srb_status, 1);
    }
    return ids;
  }
  static std::set<uint64_t> Ids(uint64_t first, uint64_t last) {
    std::set<uint64_t> ids;
    for (uint64_t id = first; id <= last; ++id) ids.insert(id);
    return ids;
  }
};

TEST_F(Controller, ReadsAndWritesOfRandomScatterLists) {
  disk_->set_timing(Timing::kPosted);
  BuildAndHandshake();
  Bytes shadow = disk_->content();
  for (int round = 0; round < 60; ++round) {
    // A batch on extents that do not meet, for a batch has no order.
    struct Pending {
      bool read;
      uint32_t lba;
      uint32_t count;
      Buffer buffer;
    };
    std::map<uint64_t, Pending> pending;
    uint32_t lba = 0;
    for (uint64_t id = 1; id <= 12; ++id) {
      lba += static_cast<uint32_t>(random_() % 30);
      const auto count = static_cast<uint32_t>(1 + random_() % 100);
      Pending request{random_() % 2 == 0, lba, count,
                      NewBuffer(count * 512, static_cast<uint32_t>(random_() % 2048 * 2))};
      SrbOptions options;
      options.data_in = request.read;
      if (!request.read) {
        Bytes data(count * 512);
        for (uint8_t& byte : data) byte = static_cast<uint8_t>(random_());
        CopyToGuest(*memory_, request.buffer, data);
        std::copy(data.begin(), data.end(), shadow.begin() + lba * 512);
      }
      Push(id, Cdb10(request.read ? 0x28 : 0x2a, lba, static_cast<uint16_t>(count)), request.buffer,
           options);
      lba += count;
      pending[id] = request;
    }
    const unsigned flushes = channels_[0].flushes();
    Settle();
    EXPECT_LE(channels_[0].flushes() - flushes, 2u) << "completions of a batch go together";
    ASSERT_EQ(TakeIds(), Ids(1, 12));
    for (const auto& [id, request] : pending) {
      if (!request.read) continue;
      const Bytes expected(shadow.begin() + request.lba * 512,
                           shadow.begin() + (request.lba + request.count) * 512);
      ASSERT_EQ(CopyFromGuest(*memory_, request.buffer), expected);
    }
  }
  EXPECT_EQ(disk_->content(), shadow);
}

TEST_F(Controller, ReadsMarkGuestMemory) {
  BuildAndHandshake();
  memory_->StartDirtyTracking();
  SrbOptions options;
  Buffer buffer;
  buffer.bytes = 3 * 512;
  buffer.offset = 4096 - 512;
  buffer.pfns = {0x123, 0x140};
  EXPECT_EQ(Execute(Cdb10(0x28, 0, 3), buffer, options).srb.srb_status, 1);
  EXPECT_EQ(memory_->TakeDirtyPages(), (std::vector<uint64_t>{0x123, 0x140}));
  options.data_in = false;
  EXPECT_EQ(Execute(Cdb10(0x2a, 0, 3), buffer, options).srb.srb_status, 1);
  EXPECT_TRUE(memory_->TakeDirtyPages().empty());
  disk_->InjectError(FakeDisk::Op::kRead, EIO);
  options.data_in = true;
  EXPECT_EQ(Execute(Cdb10(0x28, 0, 3), buffer, options).srb.srb_status, 0x84);
  EXPECT_EQ(memory_->TakeDirtyPages().size(), 2u) << "part of it may have been read";
}

TEST_F(Controller, ErrorsReachTheGuestWithSense) {
  BuildAndHandshake();
  struct Case {
    FakeDisk::Op op;
    int error;
    Bytes cdb;
    uint8_t key, asc, ascq;
  };
  const Case cases[] = {{FakeDisk::Op::kRead, EIO, Cdb10(0x28, 0, 1), 3, 0x11, 0},
                        {FakeDisk::Op::kWrite, EIO, Cdb10(0x2a, 0, 1), 3, 0x0c, 0},
                        {FakeDisk::Op::kWrite, ENOSPC, Cdb10(0x2a, 0, 1), 7, 0x27, 7},
                        {FakeDisk::Op::kFlush, EIO, Cdb10(0x35, 0, 0), 3, 0x0c, 0}};
  for (const Case& one : cases) {
    disk_->InjectError(one.op, one.error);
    SrbOptions options;
    options.data_in = one.op == FakeDisk::Op::kRead;
    const bool has_data = one.op != FakeDisk::Op::kFlush;
    const storvsc::Packet reply = Execute(one.cdb, has_data ? NewBuffer(512) : Buffer(), options);
    EXPECT_EQ(reply.srb.srb_status, 0x84);
    EXPECT_EQ(reply.srb.scsi_status, 2);
    EXPECT_EQ(reply.srb.cdb_or_sense[2], one.key);
    EXPECT_EQ(reply.srb.cdb_or_sense[12], one.asc);
    EXPECT_EQ(reply.srb.cdb_or_sense[13], one.ascq);
  }
  EXPECT_EQ(CounterValue("scsi_errors"), 4u);
}

TEST_F(Controller, ADiskWithoutAQueueIsBusy) {
  BuildAndHandshake();
  disk_->FailOpenQueue(true);
  const storvsc::Packet reply = Execute({0, 0, 0, 0, 0, 0});
  EXPECT_EQ(reply.srb.srb_status, 0x05);
  EXPECT_EQ(reply.srb.scsi_status, 8);
  EXPECT_EQ(CounterValue("scsi_queue_failures"), 1u);
  disk_->FailOpenQueue(false);
  EXPECT_EQ(Execute({0, 0, 0, 0, 0, 0}).srb.srb_status, 1);
}

TEST_F(Controller, AFullRingToTheGuestStopsTheOtherOne) {
  for (const Timing timing : {Timing::kInline, Timing::kPosted}) {
    disk_->set_timing(timing);
    BuildAndHandshake();
    channels_[0].set_capacity(10 * 88);  // ten replies
    for (uint64_t id = 1; id <= 100; ++id) Push(id, Cdb10(0x28, 0, 1), NewBuffer(512));
    Settle();
    EXPECT_EQ(channels_[0].waiting(), 10u);
    EXPECT_EQ(channels_[0].unread(), 90u) << "none is taken that could not be answered";
    std::set<uint64_t> seen;
    for (int round = 0; round < 100 && seen.size() < 100; ++round) {
      for (const auto& sent : channels_[0].Take(3)) {
        EXPECT_TRUE(seen.insert(sent.transaction_id).second);
        EXPECT_EQ(ToPacket(sent).srb.srb_status, 1);
      }
      Settle();
    }
    EXPECT_EQ(seen, Ids(1, 100));
    channels_[0].set_capacity(128 << 10);
    controller_.reset();
  }
}

TEST_F(Controller, QueueDepthIsBounded) {
  options_.queue_depth = 8;
  disk_->set_timing(Timing::kHeld);
  BuildAndHandshake();
  for (uint64_t id = 1; id <= 20; ++id) Push(id, Cdb10(0x28, 0, 1), NewBuffer(512));
  Settle();
  EXPECT_EQ(disk_->held(), 8u);
  EXPECT_EQ(channels_[0].unread(), 12u);
  std::set<uint64_t> seen;
  for (int round = 0; round < 3; ++round) {
    disk_->Release();
    Settle();
    seen.merge(TakeIds());
  }
  EXPECT_EQ(seen, Ids(1, 20));
}

/// The guest, which is not to signal, adds nothing that would wake the channel.
TEST_F(Controller, AQueueThatIsServedWithinAKickIsNotTheEnd) {
  options_.queue_depth = 8;
  disk_->set_timing(Timing::kInKick);
  BuildAndHandshake();
  for (uint64_t id = 1; id <= 20; ++id) Push(id, Cdb10(0x28, 0, 1), NewBuffer(512));
  Settle();
  EXPECT_EQ(TakeIds(), Ids(1, 20));
}

TEST_F(Controller, ManyMoreRequestsThanATurnServes) {
  BuildAndHandshake();
  std::set<uint64_t> seen;
  for (uint64_t id = 1; id <= 3000; ++id) Push(id, {0, 0, 0, 0, 0, 0});
  for (int round = 0; round < 50 && seen.size() < 3000; ++round) {
    Settle();
    seen.merge(TakeIds());
  }
  EXPECT_EQ(seen, Ids(1, 3000));
}

// --- disks that come and go

TEST_F(Controller, HotAddIsAnnounced) {
  BuildAndHandshake();
  SrbOptions options;
  options.lun = 3;
  EXPECT_EQ(Execute({0, 0, 0, 0, 0, 0}, {}, options).srb.srb_status, 0x20);
  ASSERT_TRUE(controller_->AttachDisk(3, NewDisk()).ok());
  Settle();
  const auto sent = channels_[0].Take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].type, PacketType::kInBand);
  EXPECT_EQ(sent[0].transaction_id, 0u);
  EXPECT_FALSE(sent[0].completion_requested);
  EXPECT_EQ(sent[0].payload.size(), 64u);
  EXPECT_EQ(ToPacket(sent[0]).header.operation, 11u);
  EXPECT_EQ(Execute({0, 0, 0, 0, 0, 0}, {}, options).srb.srb_status, 1);
}

TEST_F(Controller, AnnouncementsWaitForTheHandshakeAndTheVersion) {
  Build();
  Open(0);
  ASSERT_TRUE(controller_->AttachDisk(1, NewDisk()).ok());
  Settle();
  EXPECT_TRUE(channels_[0].Take().empty());
  Handshake(0x0200);
  ASSERT_TRUE(controller_->AttachDisk(2, NewDisk()).ok());
  Settle();
  EXPECT_TRUE(channels_[0].Take().empty()) << "version 2.0 has no such message";
  controller_->Close(0);
  Open(0);
  Handshake(0x0402);
  EXPECT_TRUE(channels_[0].Take().empty()) << "it scans anyway";
  ASSERT_TRUE(controller_->AttachDisk(3, NewDisk()).ok());
  Settle();
  ASSERT_EQ(channels_[0].waiting(), 1u);
  EXPECT_EQ(channels_[0].Take()[0].payload.size(), 48u);
}

TEST_F(Controller, AnnouncementsCoalesceWhileTheRingIsFull) {
  BuildAndHandshake();
  channels_[0].set_capacity(2 * 88);
  Push(1, {0, 0, 0, 0, 0, 0});
  Push(2, {0, 0, 0, 0, 0, 0});
  Settle();
  for (uint8_t lun = 1; lun < 5; ++lun) {
    ASSERT_TRUE(controller_->AttachDisk(lun, NewDisk()).ok());
    Settle();
  }
  EXPECT_EQ(channels_[0].Take().size(), 2u);
  Settle();
  const auto sent = channels_[0].Take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(ToPacket(sent[0]).header.operation, 11u);
}

TEST_F(Controller, DetachWaitsForRequestsUnderWay) {
  disk_->set_timing(Timing::kHeld);
  BuildAndHandshake();
  Open(1);
  const Buffer first = NewBuffer(512);
  Push(1, Cdb10(0x28, 1, 1), first);
  Push(2, Cdb10(0x28, 2, 1), NewBuffer(512), {}, 1);
  Settle();
  EXPECT_EQ(disk_->open_queues(), 2u);

  std::shared_ptr<DiskIo> returned;
  ASSERT_TRUE(
      controller_->DetachDisk(0, [&](std::shared_ptr<DiskIo> disk) { returned = std::move(disk); })
          .ok());
  Settle();
  EXPECT_EQ(returned, nullptr);
  EXPECT_EQ(ToPacket(channels_[0].Take().at(0)).header.operation, 11u);
  EXPECT_EQ(Execute({0, 0, 0, 0, 0, 0}).srb.srb_status, 0x20) << "gone for new requests";
  EXPECT_FALSE(controller_->DetachDisk(0, {}).ok());
  // Its place is free at once.
  auto other = NewDisk();
  ASSERT_TRUE(controller_->AttachDisk(0, other).ok());
  Settle();
  channels_[0].Take();
  EXPECT_EQ(Execute({0, 0, 0, 0, 0, 0}).srb.srb_status, 1);

  disk_->Release();
  Settle();
  EXPECT_EQ(TakeIds(), Ids(1, 1));
  EXPECT_EQ(TakeIds(1), Ids(2, 2));
  EXPECT_EQ(CopyFromGuest(*memory_, first),
            Bytes(disk_->content().begin() + 512, disk_->content().begin() + 1024));
  ASSERT_EQ(returned, disk_);
  EXPECT_EQ(disk_->open_queues(), 0u);
  EXPECT_TRUE(returned->Close().ok());
}

TEST_F(Controller, DetachOutlivesTheController) {
  disk_->set_timing(Timing::kHeld);
  BuildAndHandshake();
  Push(1, Cdb10(0x28, 1, 1), NewBuffer(512));
  Settle();
  std::shared_ptr<DiskIo> returned;
  ASSERT_TRUE(
      controller_->DetachDisk(0, [&](std::shared_ptr<DiskIo> disk) { returned = std::move(disk); })
          .ok());
  controller_.reset();
  Settle();
  EXPECT_EQ(returned, disk_);
  EXPECT_EQ(disk_->open_queues(), 0u);
}

TEST_F(Controller, AttachChecksItsArguments) {
  Build();
  EXPECT_EQ(controller_->AttachDisk(64, NewDisk()).error().code(), vmm::Code::kInvalidArgument);
  EXPECT_EQ(controller_->AttachDisk(0, NewDisk()).error().code(), vmm::Code::kAlreadyExists);
  auto odd = std::make_shared<FakeDisk>(FakeDisk::DefaultInfo(1000));
  EXPECT_EQ(controller_->AttachDisk(1, odd).error().code(), vmm::Code::kInvalidArgument);
  EXPECT_EQ(controller_->DetachDisk(1, {}).error().code(), vmm::Code::kNotFound);
  EXPECT_TRUE(controller_->AttachDisk(63, NewDisk()).ok());
}

TEST_F(Controller, AResizeIsAnnouncedAndTold) {
  BuildAndHandshake();
  disk_->Resize(2 * kDiskBytes);
  Settle();
  ASSERT_EQ(channels_[0].waiting(), 1u);
  EXPECT_EQ(ToPacket(channels_[0].Take()[0]).header.operation, 11u);
  const storvsc::Packet attention = Execute({0, 0, 0, 0, 0, 0});
  EXPECT_EQ(attention.srb.srb_status, 0x84);
  EXPECT_EQ(attention.srb.cdb_or_sense[2], 6);
  EXPECT_EQ(attention.srb.cdb_or_sense[12], 0x2a);
  EXPECT_EQ(attention.srb.cdb_or_sense[13], 9);
  EXPECT_EQ(Execute({0, 0, 0, 0, 0, 0}).srb.srb_status, 1);
}

// --- stopping, closing, saving

TEST_F(Controller, CloseWithRequestsUnderWay) {
  disk_->set_timing(Timing::kHeld);
  BuildAndHandshake();
  for (uint64_t id = 1; id <= 30; ++id) Push(id, Cdb10(0x28, 0, 1), NewBuffer(512));
  Settle();
  EXPECT_EQ(disk_->held(), 30u);
  controller_->Close(0);
  EXPECT_EQ(disk_->held(), 0u);
  EXPECT_EQ(disk_->open_queues(), 0u);
  EXPECT_TRUE(channels_[0].Take().empty()) << "nobody listens any more";
  EXPECT_FALSE(channels_[0].open());
  Settle();
  disk_->set_timing(Timing::kInline);
  Open(0);
  EXPECT_EQ(Control(Operation::kQueryProperties).header.status, 0xC0000184u) << "from the start";
  Handshake();
  EXPECT_EQ(Execute({0, 0, 0, 0, 0, 0}).srb.srb_status, 1);
}

TEST_F(Controller, StopAnswersWhatItTookAndLeavesTheRest) {
  options_.queue_depth = 8;
  disk_->set_timing(Timing::kHeld);
  BuildAndHandshake();
  for (uint64_t id = 1; id <= 20; ++id) Push(id, Cdb10(0x28, 0, 1), NewBuffer(512));
  Settle();
  controller_->Stop();
  controller_->Stop();
  EXPECT_FALSE(channels_[0].attached());
  EXPECT_EQ(TakeIds(), Ids(1, 8));
  EXPECT_EQ(channels_[0].unread(), 12u);
  Settle();
  EXPECT_EQ(channels_[0].unread(), 12u);
  disk_->set_timing(Timing::kPosted);
  controller_->Start();
  controller_->Start();
  Settle();
  EXPECT_EQ(TakeIds(), Ids(9, 20));
}

TEST_F(Controller, StopInterruptsLongCommands) {
  disk_->set_timing(Timing::kHeld);
  BuildAndHandshake();
  Push(1, Cdb10(0x2f, 0, 2000));
  Settle();
  controller_->Stop();
  const auto replies = channels_[0].Take();
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(ToPacket(replies[0]).srb.srb_status, 0x05);
  EXPECT_EQ(ToPacket(replies[0]).srb.scsi_status, 8) << "the guest sends it again";
}

TEST_F(Controller, SaveAndRestoreInTheMiddleOfAQueue) {
  options_.queue_depth = 8;
  disk_->set_timing(Timing::kHeld);
  BuildAndHandshake();
  EXPECT_EQ(Control(Operation::kCreateSubChannels, 2).header.status, 0u);
  Open(2);
  EXPECT_EQ(Execute({0xff, 0, 0, 0, 0, 0}).srb.srb_status, 0x84);  // leaves sense behind
  Bytes shadow = disk_->content();
  std::map<uint64_t, Buffer> reads;
  for (uint64_t id = 1; id <= 40; ++id) {
    const auto lba = static_cast<uint32_t>(id * 4);
    const Buffer buffer = NewBuffer(1024, 512);
    SrbOptions options;
    options.data_in = id % 2 == 0;
    if (id % 2 == 0) {
      reads[id] = buffer;
    } else {
      const Bytes data(1024, static_cast<uint8_t>(id));
      CopyToGuest(*memory_, buffer, data);
      std::copy(data.begin(), data.end(), shadow.begin() + lba * 512);
    }
    Push(id, Cdb10(id % 2 == 0 ? 0x28 : 0x2a, lba, 2), buffer, options, id > 20 ? 2 : 0);
  }
  Settle();
  controller_->Stop();
  const auto saved = controller_->Save();
  ASSERT_TRUE(saved.ok());
  std::set<uint64_t> seen = TakeIds(0);
  seen.merge(TakeIds(2));
  EXPECT_EQ(seen.size(), 16u);
  controller_.reset();

  disk_->set_timing(Timing::kPosted);
  Build();
  std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> endpoints;
  endpoints.emplace_back(0, channels_[0].Endpoint());
  endpoints.emplace_back(2, channels_[2].Endpoint());
  const auto restored = controller_->Restore(*saved, std::move(endpoints));
  ASSERT_TRUE(restored.ok()) << restored.error().ToString();
  EXPECT_FALSE(channels_[0].attached()) << "not before Start";
  EXPECT_EQ(*controller_->Save(), *saved);
  controller_->Start();
  for (int round = 0; round < 10; ++round) Settle();
  seen.merge(TakeIds(0));
  seen.merge(TakeIds(2));
  EXPECT_EQ(seen, Ids(1, 40));
  EXPECT_EQ(disk_->content(), shadow);
  for (const auto& [id, buffer] : reads)
    EXPECT_EQ(CopyFromGuest(*memory_, buffer),
              Bytes(shadow.begin() + static_cast<ptrdiff_t>(id * 2048),
                    shadow.begin() + static_cast<ptrdiff_t>(id * 2048 + 1024)));
  const Buffer sense = NewBuffer(18);
  EXPECT_EQ(Execute({0x03, 0, 0, 0, 18, 0}, sense).srb.srb_status, 1);
  EXPECT_EQ(CopyFromGuest(*memory_, sense)[12], 0x20);
}

TEST_F(Controller, APendingAnnouncementAndAFailedChannelAreKept) {
  BuildAndHandshake();
  Open(1);
  channels_[1].PushInBand(1, Bytes(3));
  Push(7, {0, 0, 0, 0, 0, 0}, {}, {}, 1);
  channels_[0].set_capacity(10);
  ASSERT_TRUE(controller_->AttachDisk(5, NewDisk()).ok());
  Settle();
  controller_->Stop();
  const std::string saved = *controller_->Save();
  controller_.reset();
  channels_[0].set_capacity(1 << 20);

  Build();
  ASSERT_TRUE(controller_->AttachDisk(5, NewDisk()).ok());
  std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> endpoints;
  endpoints.emplace_back(1, channels_[1].Endpoint());
  endpoints.emplace_back(0, channels_[0].Endpoint());
  ASSERT_TRUE(controller_->Restore(saved, std::move(endpoints)).ok());
  controller_->Start();
  Settle();
  ASSERT_EQ(channels_[0].waiting(), 1u);
  EXPECT_EQ(ToPacket(channels_[0].Take()[0]).header.operation, 11u);
  EXPECT_EQ(channels_[1].unread(), 1u) << "what was stopped stays stopped";
}

TEST_F(Controller, ResetIsAsNew) {
  BuildAndHandshake();
  EXPECT_EQ(Execute({0xff, 0, 0, 0, 0, 0}).srb.srb_status, 0x84);
  controller_->Stop();
  controller_->Close(0);
  controller_->Reset();
  const std::string after = *controller_->Save();
  controller_.reset();
  Build();
  EXPECT_EQ(after, *controller_->Save());
}

TEST_F(Controller, SavedStateIsChecked) {
  BuildAndHandshake();
  controller_->Stop();
  const std::string saved = *controller_->Save();
  const auto restore = [&](const std::string& state, std::vector<uint16_t> open) {
    controller_.reset();
    Build();
    std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> endpoints;
    for (const uint16_t index : open)
      endpoints.emplace_back(index, channels_[index % 4].Endpoint());
    return controller_->Restore(state, std::move(endpoints));
  };
  EXPECT_TRUE(restore(saved, {0}).ok());
  EXPECT_FALSE(restore(saved, {}).ok()) << "a session without its channel";
  EXPECT_FALSE(restore(saved, {0, 5}).ok()) << "a channel that cannot be";
  EXPECT_FALSE(restore("\xff\xff", {0}).ok());
  EXPECT_TRUE(restore("", {}).ok());
  // Field 1 is the phase, 2 the version, 3 the sub-channels, 5 the failed channels, 6 the LUNs.
  EXPECT_FALSE(restore(std::string("\x08\x05\x10\x80\x0c", 5), {0}).ok()) << "no such phase";
  EXPECT_FALSE(restore(std::string("\x08\x04\x10\x81\x0c", 5), {0}).ok()) << "no such version";
  EXPECT_FALSE(restore(std::string("\x08\x01\x10\x80\x0c", 5), {0}).ok()) << "not yet negotiated";
  EXPECT_TRUE(restore(std::string("\x08\x04\x10\x80\x0c\x18\x03", 7), {0}).ok());
  EXPECT_FALSE(restore(std::string("\x08\x04\x10\x80\x0c\x18\x04", 7), {0}).ok()) << "too many";
  EXPECT_FALSE(restore(std::string("\x2a\x01\x01", 3), {0}).ok()) << "failed, but not open";
  EXPECT_TRUE(restore(std::string("\x32\x04\x08\x00\x10\x01", 6), {}).ok());
  EXPECT_FALSE(restore(std::string("\x32\x04\x08\x01\x10\x01", 6), {}).ok()) << "no such disk";
  EXPECT_FALSE(restore(std::string("\x32\x04\x08\x40\x10\x01", 6), {}).ok()) << "no such LUN";
  EXPECT_FALSE(restore(std::string("\x32\x04\x08\x00\x10\x00", 6), {}).ok()) << "no size";
  EXPECT_FALSE(restore(std::string("\x32\x06\x08\x00\x10\x01\x18\x10", 8), {}).ok()) << "no key";
}

TEST_F(Controller, ARefusedStateChangesNoUnit) {
  Build();
  ASSERT_TRUE(controller_->AttachDisk(1, NewDisk()).ok());
  const std::string before = *controller_->Save();
  // LUN 0 has sense; LUN 1 has persistent reservations (field 2 of 6), and no place for them.
  const std::string state(
      "\x32\x06\x08\x00\x10\x01\x18\x06\x32\x08\x08\x01\x10\x01\x32\x02\x10\x01", 18);
  EXPECT_FALSE(controller_->Restore(state, {}).ok());
  EXPECT_EQ(*controller_->Save(), before);
}

TEST_F(Controller, NoSessionIsLeftOfARestoreThatFailed) {
  Build();
  ScsiDisk::Options options;
  options.reservations =
      std::make_shared<PersistentReservations>([](const std::string&) { return false; });
  ASSERT_TRUE(controller_->AttachDisk(1, NewDisk(), options).ok());
  std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> endpoints;
  endpoints.emplace_back(0, channels_[0].Endpoint());
  const std::string state("\x08\x04\x10\x80\x0c\x32\x08\x08\x01\x10\x01\x32\x02\x10\x01", 15);
  EXPECT_EQ(controller_->Restore(state, std::move(endpoints)).error().code(),
            vmm::Code::kUnavailable);
  controller_->Reset();
  controller_->Start();
  Open(0);
  Open(1);
  Push(1, {0, 0, 0, 0, 0, 0}, {}, {}, 1);
  Settle();
  EXPECT_EQ(channels_[1].unread(), 1u) << "a sub-channel waits for the session";
  Handshake();
  EXPECT_EQ(channels_[1].unread(), 0u);
}

// --- threads

TEST_F(Controller, ThreadsServeChannelsWhileDisksComeAndGo) {
  constexpr int kRequests = 1500;
  disk_->set_timing(Timing::kPosted);
  auto io0 = *vmm::LoopThread::Start("io/0");
  auto io1 = *vmm::LoopThread::Start("io/1");
  controller_ = std::make_unique<SyntheticScsiController>(
      options_, *main_loop_, std::vector<vmm::Loop*>{&io0->loop(), &io1->loop()});
  controller_->OnOffered(&offers_);
  ASSERT_TRUE(controller_->AttachDisk(0, disk_).ok());
  const auto wait_for = [&](FakeChannel& channel, size_t count) {
    for (int i = 0; i < 20000 && channel.waiting() < count; ++i) {
      main_loop_->RunOnce(0);
      std::this_thread::yield();
    }
    ASSERT_GE(channel.waiting(), count);
  };
  for (uint16_t index = 0; index < 4; ++index)
    ASSERT_TRUE(controller_->Open(index, channels_[index].Endpoint()).ok());
  for (const auto& [operation, argument] :
       {std::pair<Operation, uint16_t>{Operation::kBeginInitialization, 0},
        {Operation::kQueryProtocolVersion, 0x0602},
        {Operation::kQueryProperties, 0},
        {Operation::kEndInitialization, 0}}) {
    channels_[0].PushInBand(kInitId, ControlPayload(operation, argument));
    wait_for(channels_[0], 1);
    EXPECT_EQ(ToPacket(channels_[0].Take().at(0)).header.status, 0u);
  }

  int detached = 0;
  int attached = 0;
  std::map<uint16_t, std::multiset<uint64_t>> seen;
  const auto collect = [&] {
    for (uint16_t index = 0; index < 4; ++index) {
      for (const auto& sent : channels_[index].Take()) {
        if (sent.type == PacketType::kCompletion) seen[index].insert(sent.transaction_id);
      }
    }
    main_loop_->RunOnce(0);
  };
  for (int i = 1; i <= kRequests; ++i) {
    for (uint16_t index = 0; index < 4; ++index) {
      SrbOptions options;
      options.lun = i % 3 == 0 ? 9 : 0;  // 9 comes and goes
      Push(static_cast<uint64_t>(i), Cdb10(0x28, static_cast<uint32_t>(i % 1000), 8),
           NewBuffer(4096), options, index);
    }
    if (i % 50 == 0 && attached == detached) {
      auto hot = NewDisk();
      hot->set_timing(Timing::kPosted);
      ASSERT_TRUE(controller_->AttachDisk(9, hot).ok());
      ++attached;
    } else if (i % 50 == 25 && attached > detached) {
      const auto done = [&](std::shared_ptr<DiskIo> disk) {
        EXPECT_TRUE(disk->Close().ok());
        ++detached;
      };
      (void)controller_->DetachDisk(9, done);  // may be on its way already
    }
    if (i % 400 == 0) {
      controller_->Stop();
      ASSERT_TRUE(controller_->Save().ok());
      controller_->Start();
    }
    collect();
  }
  for (int i = 0; i < 200000; ++i) {
    collect();
    if (std::all_of(seen.begin(), seen.end(),
                    [](const auto& entry) { return entry.second.size() >= kRequests; }))
      break;
    std::this_thread::yield();
  }
  for (uint16_t index = 0; index < 4; ++index) {
    EXPECT_EQ(seen[index].size(), static_cast<size_t>(kRequests));
    EXPECT_EQ(std::set<uint64_t>(seen[index].begin(), seen[index].end()), Ids(1, kRequests));
  }
  EXPECT_GT(attached, 2);
  controller_.reset();
  EXPECT_EQ(disk_->open_queues(), 0u);
  for (int i = 0; i < 3; ++i) main_loop_->RunOnce(0);
  EXPECT_GE(detached, attached - 1);
}

}  // namespace
}  // namespace kvmbus::virtdev::scsi_test
