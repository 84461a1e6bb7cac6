// SPDX-License-Identifier: Apache-2.0
// The handshake, the shape of packets, and what a guest may do wrong.
#include "virtdev/synthetic/scsi/scsi_test_guest.h"

namespace kvmbus::virtdev::scsi_test {
namespace {

class Protocol : public ScsiControllerTest {};

Bytes SenseOf(const storvsc::Packet& packet) {
  return {packet.srb.cdb_or_sense[2], packet.srb.cdb_or_sense[12], packet.srb.cdb_or_sense[13]};
}

TEST_F(Protocol, OfferIsTheScsiController) {
  Build();
  EXPECT_EQ(controller_->offer().interface_id.ToString(), "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
  EXPECT_EQ(controller_->offer().instance_id, options_.instance_id);
  EXPECT_EQ(controller_->offer().flags, 0);
  EXPECT_EQ(controller_->device_name(), "scsi/0");
}

TEST_F(Protocol, HandshakeAsLinuxDoesIt) {
  Build();
  Open(0);
  EXPECT_EQ(Control(Operation::kBeginInitialization).header.status, 0u);
  const storvsc::Packet newer = Control(Operation::kQueryProtocolVersion, 0x0700);
  EXPECT_EQ(newer.header.status, 0xC0000059u);
  EXPECT_EQ(newer.version.major_minor, 0x0700);
  const storvsc::Packet version = Control(Operation::kQueryProtocolVersion, 0x0602);
  EXPECT_EQ(version.header.status, 0u);
  EXPECT_EQ(version.version.major_minor, 0x0602);
  const storvsc::Packet properties = Control(Operation::kQueryProperties);
  EXPECT_EQ(properties.header.status, 0u);
  EXPECT_EQ(properties.properties.max_sub_channel_count, 3) << "vcpus - 1";
  EXPECT_EQ(properties.properties.flags, 1u);
  EXPECT_EQ(properties.properties.max_transfer_bytes, 1u << 20);
  EXPECT_EQ(Control(Operation::kEndInitialization).header.status, 0u);
  EXPECT_TRUE(offers_.offered.empty());
  EXPECT_EQ(Control(Operation::kCreateSubChannels, 3).header.status, 0u);
  EXPECT_EQ(offers_.offered, (std::vector<uint16_t>{3}));
  EXPECT_EQ(Execute({0, 0, 0, 0, 0, 0}).srb.srb_status, 1);
}

TEST_F(Protocol, EveryVersionThatGuestsSpeak) {
  for (const uint16_t version : {0x0602, 0x0600, 0x0501, 0x0402, 0x0200}) {
    Build();
    Open(0);
    EXPECT_EQ(Control(Operation::kBeginInitialization).header.status, 0u);
    EXPECT_EQ(Control(Operation::kQueryProtocolVersion, version).header.status, 0u);
    const storvsc::Packet properties = Control(Operation::kQueryProperties);
    const bool multi_channel = version >= 0x0501;
    EXPECT_EQ(properties.properties.max_sub_channel_count, multi_channel ? 3 : 0);
    EXPECT_EQ(properties.properties.flags, multi_channel ? 1u : 0u);
    EXPECT_EQ(Control(Operation::kCreateSubChannels, 1).header.status,
              multi_channel ? 0u : 0xC000000Du);
    EXPECT_EQ(Control(Operation::kEndInitialization).header.status, 0u);
    controller_->Close(0);
  }
  for (const uint16_t version : {0x0000, 0x0100, 0x0401, 0x0502, 0x0603, 0xffff}) {
    Build();
    Open(0);
    Control(Operation::kBeginInitialization);
    EXPECT_EQ(Control(Operation::kQueryProtocolVersion, version).header.status, 0xC0000059u);
    controller_->Close(0);
  }
}

TEST_F(Protocol, WrongOrderIsRefusedAndChangesNothing) {
  const Operation right[] = {Operation::kBeginInitialization, Operation::kQueryProtocolVersion,
                             Operation::kQueryProperties, Operation::kEndInitialization};
  Build();
  Open(0);
  for (size_t step = 0; step < 4; ++step) {
    for (uint32_t wrong = 0; wrong <= 16; ++wrong) {
      const auto operation = static_cast<Operation>(wrong);
      if (operation == right[step]) continue;
      if (step == 3 && operation == Operation::kCreateSubChannels) continue;  // allowed there
      EXPECT_EQ(Control(operation).header.status, 0xC0000184u) << step << " " << wrong;
    }
    EXPECT_EQ(Control(right[step], 0x0600).header.status, 0u);
  }
  EXPECT_EQ(Control(Operation::kBeginInitialization).header.status, 0xC0000184u);
  EXPECT_GT(CounterValue("scsi_refused_packets"), 0u);
  EXPECT_EQ(CounterValue("scsi_protocol_errors"), 0u);
  EXPECT_EQ(Execute({0, 0, 0, 0, 0, 0}).srb.srb_status, 1);
}

TEST_F(Protocol, ResetsAreAcknowledged) {
  BuildAndHandshake();
  for (const Operation reset :
       {Operation::kResetLun, Operation::kResetBus, Operation::kResetAdapter})
    EXPECT_EQ(Control(reset).header.status, 0u);
}

TEST_F(Protocol, SubChannelCountIsChecked) {
  BuildAndHandshake();
  EXPECT_EQ(Control(Operation::kCreateSubChannels, 0).header.status, 0xC000000Du);
  EXPECT_EQ(Control(Operation::kCreateSubChannels, 4).header.status, 0xC000000Du);
  EXPECT_EQ(Control(Operation::kCreateSubChannels, 0xffff).header.status, 0xC000000Du);
  EXPECT_TRUE(offers_.offered.empty());
}

TEST_F(Protocol, NoSubChannelsWithOneCpu) {
  options_.vcpus = 1;
  Build();
  Open(0);
  Control(Operation::kBeginInitialization);
  Control(Operation::kQueryProtocolVersion, 0x0600);
  EXPECT_EQ(Control(Operation::kQueryProperties).properties.max_sub_channel_count, 0);
  auto refused = controller_->Open(1, channels_[1].Endpoint());
  EXPECT_FALSE(refused.ok());
}

TEST_F(Protocol, RepliesAreAsLongAsTheirRequests) {
  BuildAndHandshake();
  const std::pair<size_t, size_t> sizes[] = {{48, 48}, {50, 56}, {56, 56}, {64, 64}, {72, 64}};
  for (const auto& [in, out] : sizes) {
    SrbOptions options;
    options.size = in;
    Push(5, {0, 0, 0, 0, 0, 0}, {}, options);
    Settle();
    auto replies = channels_[0].Take();
    ASSERT_EQ(replies.size(), 1u);
    EXPECT_EQ(replies[0].payload.size(), out) << in;
    EXPECT_EQ(ToPacket(replies[0]).srb.srb_status, 1);
    channels_[0].PushInBand(6, ControlPayload(Operation::kResetBus, 0, in));
    Settle();
    replies = channels_[0].Take();
    ASSERT_EQ(replies.size(), 1u);
    EXPECT_EQ(replies[0].payload.size(), out) << in;
  }
}

TEST_F(Protocol, ReplyOfARequest) {
  BuildAndHandshake();
  SrbOptions options;
  const storvsc::Packet good = Execute(Cdb10(0x28, 0, 1), NewBuffer(512), options);
  EXPECT_EQ(good.header.operation, 1u);
  EXPECT_EQ(good.header.status, 0u);
  EXPECT_EQ(good.srb.length, 0x34);
  EXPECT_EQ(good.srb.srb_status, 0x01);
  EXPECT_EQ(good.srb.scsi_status, 0);
  EXPECT_EQ(good.srb.cdb_length, 16);
  EXPECT_EQ(good.srb.sense_length, 20);
  EXPECT_EQ(good.srb.transfer_length, 512u);
  EXPECT_EQ(good.srb.cdb_or_sense, (std::array<uint8_t, 20>{}));
  const storvsc::Packet bad = Execute(Cdb10(0x28, 0xffffff, 1), NewBuffer(512), options);
  EXPECT_EQ(bad.header.status, 0xC0000185u);
  EXPECT_EQ(bad.srb.srb_status, 0x84);
  EXPECT_EQ(bad.srb.scsi_status, 2);
  EXPECT_EQ(bad.srb.transfer_length, 0u);
  EXPECT_EQ(bad.srb.cdb_or_sense,
            (std::array<uint8_t, 20>{0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x21}));
  const storvsc::Packet over = Execute(Cdb10(0x28, 0, 4), NewBuffer(1024), options);
  EXPECT_EQ(over.header.status, 0x80000005u);
  EXPECT_EQ(over.srb.srb_status, 0x12);
  EXPECT_EQ(over.srb.scsi_status, 0);
  EXPECT_EQ(over.srb.transfer_length, 1024u);
  EXPECT_EQ(CounterValue("scsi_requests"), 3u);
  EXPECT_EQ(CounterValue("scsi_errors"), 2u);
  EXPECT_EQ(CounterValue("scsi_bytes_read"), 1536u);
}

TEST_F(Protocol, ReportLunsAnswersEverywhere) {
  BuildAndHandshake();
  for (const uint8_t lun : {63, 5}) ASSERT_TRUE(controller_->AttachDisk(lun, NewDisk()).ok());
  Settle();
  channels_[0].Take();
  Bytes cdb(12);
  cdb[0] = 0xa0;
  cdb[9] = 255;
  Bytes expected(32);
  expected[3] = 24;
  expected[8 + 8 + 1] = 5;
  expected[8 + 16 + 1] = 63;
  SrbOptions options;
  for (const uint8_t lun : {0, 5, 7, 200}) {
    options.lun = lun;
    const Buffer buffer = NewBuffer(255);
    const storvsc::Packet reply = Execute(cdb, buffer, options);
    EXPECT_EQ(reply.srb.srb_status, 1);
    ASSERT_EQ(reply.srb.transfer_length, 32u);
    Bytes data = CopyFromGuest(*memory_, buffer);
    data.resize(32);
    EXPECT_EQ(data, expected);
  }
  EXPECT_EQ(Execute(cdb, NewBuffer(20), options).srb.transfer_length, 20u);
  EXPECT_EQ(Execute(cdb, NewBuffer(7), options).srb.transfer_length, 0u);
  EXPECT_EQ(Execute(cdb, {}, options).srb.srb_status, 1);
  options.target = 1;
  const Buffer other = NewBuffer(255);
  EXPECT_EQ(Execute(cdb, other, options).srb.transfer_length, 8u);
  EXPECT_EQ(CopyFromGuest(*memory_, other)[3], 0);
  cdb[9] = 7;
  EXPECT_EQ(Execute(cdb, NewBuffer(255), options).srb.transfer_length, 0u);
}

TEST_F(Protocol, AbsentUnits) {
  BuildAndHandshake();
  const SrbOptions places[] = {{.lun = 1}, {.lun = 64}, {.target = 1}, {.path = 1}};
  for (const SrbOptions& place : places) {
    const Buffer buffer = NewBuffer(96);
    const storvsc::Packet inquiry = Execute({0x12, 0, 0, 0, 96, 0}, buffer, place);
    EXPECT_EQ(inquiry.srb.srb_status, 1);
    EXPECT_EQ(inquiry.srb.transfer_length, 96u);
    const Bytes data = CopyFromGuest(*memory_, buffer);
    EXPECT_EQ(data[0], 0x7f);
    EXPECT_EQ(data[2], 5);
    EXPECT_EQ(data[8], place.lun == 0 ? 'M' : ' ');
    const storvsc::Packet vpd = Execute({0x12, 1, 0, 0, 96, 0}, NewBuffer(96), place);
    EXPECT_EQ(vpd.srb.srb_status, 0x84);
    EXPECT_EQ(SenseOf(vpd), (Bytes{5, 0x24, 0}));
    const storvsc::Packet ready = Execute({0, 0, 0, 0, 0, 0}, {}, place);
    EXPECT_EQ(ready.srb.srb_status, 0x20);
    EXPECT_EQ(ready.header.status, 0xC00000C0u);
  }
}

/// Each of these stops the channel it came on, and nothing else.
class ProtocolErrors : public ScsiControllerTest, public ::testing::WithParamInterface<int> {
 protected:
  static constexpr int kCases = 7;
  IncomingPacket BadPacket(int which) {
    IncomingPacket packet = SrbPacket(9, Cdb10(0x28, 0, 2), NewBuffer(1024), {});
    switch (which) {
      case 0:
        packet.payload.resize(11);
        break;
      case 1:
        packet.type = PacketType::kTransferPages;
        break;
      case 2:
        packet.completion_requested = false;
        break;
      case 3:
        packet.ranges[0].bytes = 1023;
        break;
      case 4:
        packet.ranges.push_back(packet.ranges[0]);
        break;
      case 5:
        packet.ranges.clear();
        break;
      default:
        packet.type = PacketType::kInBand;  // what ranges it may have do not count
    }
    return packet;
  }
};
INSTANTIATE_TEST_SUITE_P(All, ProtocolErrors, ::testing::Range(0, 7));

TEST_P(ProtocolErrors, StopTheirChannelAlone) {
  BuildAndHandshake();
  Open(1);
  channels_[1].Push(BadPacket(GetParam()));
  Push(10, {0, 0, 0, 0, 0, 0}, {}, {}, 1);
  Settle();
  EXPECT_EQ(channels_[1].unread(), 1u) << "nothing after it is read";
  EXPECT_TRUE(channels_[1].Take().empty());
  EXPECT_EQ(CounterValue("scsi_protocol_errors"), 1u);
  EXPECT_EQ(Execute({0, 0, 0, 0, 0, 0}).srb.srb_status, 1);
  controller_->Close(1);
  Open(1);
  EXPECT_EQ(channels_[1].Take().size(), 1u) << "opened anew it serves again";
}

TEST_F(Protocol, RequestsUnderWayOutliveAProtocolError) {
  disk_->set_timing(Timing::kHeld);
  BuildAndHandshake();
  Push(1, Cdb10(0x28, 0, 1), NewBuffer(512));
  channels_[0].PushInBand(2, Bytes(4));
  Settle();
  EXPECT_TRUE(channels_[0].Take().empty());
  disk_->Release();
  Settle();
  const auto replies = channels_[0].Take();
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].transaction_id, 1u);
}

TEST_F(Protocol, StrayCompletionsAreIgnored) {
  BuildAndHandshake();
  channels_[0].Push({PacketType::kCompletion, false, 123, Bytes(64), {}});
  EXPECT_EQ(Execute({0, 0, 0, 0, 0, 0}).srb.srb_status, 1);
  EXPECT_EQ(CounterValue("scsi_refused_packets"), 1u);
}

TEST_F(Protocol, BuffersThatAreNotOursAreRefusedWithSense) {
  BuildAndHandshake();
  Buffer outside;
  outside.bytes = 512;
  outside.pfns = {0x100000};
  const storvsc::Packet reply = Execute(Cdb10(0x28, 0, 1), outside);
  EXPECT_EQ(reply.srb.srb_status, 0x86);
  EXPECT_EQ(SenseOf(reply), (Bytes{5, 0x24, 0}));
  Buffer large = NewBuffer((1 << 20) + 512);
  EXPECT_EQ(Execute(Cdb10(0x28, 0, 1), large).srb.srb_status, 0x86);
  Bytes long_cdb(17);
  EXPECT_EQ(Execute(long_cdb).srb.srb_status, 0x86);
}

TEST_F(Protocol, AGuestThatTakesRoomBackStopsItsChannel) {
  BuildAndHandshake();
  channels_[0].RefuseWrites(true);
  Push(1, {0, 0, 0, 0, 0, 0});
  Push(2, {0, 0, 0, 0, 0, 0});
  Settle();
  EXPECT_EQ(CounterValue("scsi_protocol_errors"), 1u);
  EXPECT_EQ(channels_[0].unread(), 1u);
}

TEST_F(Protocol, SubChannelsWaitForTheHandshake) {
  Build();
  Open(0);
  Open(1);
  Push(5, {0, 0, 0, 0, 0, 0}, {}, {}, 1);
  Settle();
  EXPECT_EQ(channels_[1].unread(), 1u);
  Handshake();
  const auto replies = channels_[1].Take();
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(ToPacket(replies[0]).srb.srb_status, 1);
  EXPECT_EQ(Control(Operation::kBeginInitialization, 0, 1).header.status, 0xC0000184u);
  EXPECT_EQ(Control(Operation::kResetBus, 0, 1).header.status, 0u);
  // Without the primary there is no session.
  controller_->Close(0);
  Push(6, {0, 0, 0, 0, 0, 0}, {}, {}, 1);
  Settle();
  EXPECT_EQ(channels_[1].unread(), 1u);
  // A driver that comes again finds its old sub-channels.
  Open(0);
  Handshake();
  EXPECT_EQ(channels_[1].Take().size(), 1u);
}

TEST_F(Protocol, ABrokenRingIsLeftAlone) {
  BuildAndHandshake();
  channels_[0].BreakRing();
  Push(1, {0, 0, 0, 0, 0, 0});
  Settle();
  EXPECT_TRUE(channels_[0].Take().empty());
  controller_->Close(0);
}

}  // namespace
}  // namespace kvmbus::virtdev::scsi_test
