// SPDX-License-Identifier: Apache-2.0
#include "virtdev/vmbus/vmbus_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/fakes/fake_vmbus_guest.h"
#include "tests/fakes/manual_clock.h"

namespace kvmbus::virtdev {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using tests::FakeVmbusGuest;
using tests::VmbusMessage;
using vmbus::GuestMessage;
using Packet = tests::FakeVmbusRing::Packet;

/// Answers every packet with its own payload. Parks what it cannot answer yet in the ring.
class EchoDevice final : public VmbusDevice {
 public:
  EchoDevice(std::string name, vmm::Loop& loop) : name_(std::move(name)), loop_(loop) {
    offer_.interface_id.bytes[0] = static_cast<uint8_t>(name_[0]);
    offer_.instance_id.bytes[15] = 1;
  }
  ~EchoDevice() override { EXPECT_THAT(channels, IsEmpty()); }

  std::string_view device_name() const override { return name_; }
  const ChannelOffer& offer() const override { return offer_; }
  void OnOffered(OfferHandle* new_handle) override { handle = new_handle; }
  void OnRevoked() override { handle = nullptr; }
  vmm::Result<void> Open(uint16_t index, std::unique_ptr<Channel> channel) override {
    if (refuse) return vmm::Error(vmm::Code::kUnavailable, "not now");
    EXPECT_TRUE(started);
    channels[index] = std::move(channel);
    Attach(index);
    return {};
  }
  void Close(uint16_t index) override {
    EXPECT_EQ(channels.count(index), 1u);
    log.push_back("close " + std::to_string(index));
    Drop(index);
  }
  void Start() override {
    if (std::exchange(started, true)) return;
    for (const auto& [index, channel] : channels) Attach(index);
  }
  void Stop() override {
    if (!std::exchange(started, false)) return;
    for (const auto& [index, channel] : channels)
      loop_.PostAndWait([&channel = *channel] { channel.Detach(); });
  }
  void Reset() override {
    log.push_back("reset");
    echoed = 0;
  }
  vmm::Result<std::string> Save() override {
    EXPECT_FALSE(started);
    if (save_error != vmm::Code::kOk) return vmm::Error(save_error, "cannot be saved");
    return std::to_string(echoed);
  }
  vmm::Result<void> Restore(
      std::string_view state,
      std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> restored) override {
    EXPECT_FALSE(started);
    if (state == "damaged") return vmm::Error(vmm::Code::kDataLoss, "damaged");
    echoed = std::stoull(std::string(state));
    for (auto& [index, channel] : restored) channels[index] = std::move(channel);
    return {};
  }

  OfferHandle* handle = nullptr;
  bool refuse = false;
  bool started = false;
  vmm::Code save_error = vmm::Code::kOk;
  uint64_t echoed = 0;
  uint64_t runs = 0;  ///< of `ready`
  std::map<uint16_t, std::unique_ptr<Channel>> channels;
  std::vector<std::string> log;

 private:
  void Attach(uint16_t index) {
    loop_.PostAndWait([this, index] {
      Channel* channel = channels[index].get();
      EXPECT_TRUE(channel->Attach(loop_, [this, channel] { Ready(*channel); }).ok());
    });
  }
  void Drop(uint16_t index) {
    loop_.PostAndWait([this, index] { channels[index]->Detach(); });
    channels.erase(index);
  }
  void Ready(Channel& channel) {
    ++runs;
    IncomingPacket packet;
    while (channel.ReserveRoom(2048) && channel.Read(&packet) == Channel::ReadStatus::kPacket) {
      EXPECT_TRUE(
          channel.Write(PacketType::kCompletion, packet.transaction_id, false, packet.payload));
      ++echoed;
    }
    channel.Flush();
  }

  const std::string name_;
  vmm::Loop& loop_;
  ChannelOffer offer_;
};

constexpr vmm::MemoryRange kRam[] = {{0, 64 << 20}};

/// A host: its loop, SynIC and bus.
struct Host {
  explicit Host(vmm::GuestMemory& memory) : server(*loop, memory, synic, Options()) {}
  VmbusServer::Options Options() {
    VmbusServer::Options options;
    options.connection_changed = [this] {
      ++connection_changes;
      if (on_connection_change) on_connection_change();
    };
    return options;
  }
  uint64_t Count(std::string_view name) const {
    uint64_t value = ~uint64_t{0};
    server.VisitCounters([&](std::string_view visited, const vmm::Counter& counter) {
      if (visited == name) value = counter.value();
    });
    return value;
  }
  tests::ManualClock clock;
  std::unique_ptr<vmm::Loop> loop = vmm::Loop::Create(clock).value();
  tests::FakeSynic synic;
  int connection_changes = 0;
  std::function<void()> on_connection_change;
  VmbusServer server;
};

class VmbusServerTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host.server.AddDevice(echo).ok());
    host.server.Start();
  }
  void ConnectAndOpen(uint64_t pages = 4) {
    ASSERT_TRUE(guest.Connect(vmbus::kVersionIron));
    guest.RequestOffers();
    ASSERT_NE(guest.Find(echo.offer().interface_id), nullptr);
    channel = guest.Find(echo.offer().interface_id);
    ASSERT_TRUE(guest.Open(*channel, pages));
  }
  static Packet MakePacket(uint64_t id, size_t bytes = 16) {
    Packet packet;
    packet.type = 6;
    packet.completion_requested = true;
    packet.transaction_id = id;
    packet.payload.assign(bytes, static_cast<uint8_t>(id));
    return packet;
  }
  void ExpectEcho(uint64_t id) {
    ASSERT_TRUE(guest.Send(*channel, MakePacket(id)));
    guest.Pump();
    const auto packets = guest.Receive(*channel);
    ASSERT_EQ(packets.size(), 1u);
    EXPECT_EQ(packets[0].type, 0xb);
    EXPECT_EQ(packets[0].transaction_id, id);
    EXPECT_EQ(packets[0].payload, MakePacket(id).payload);
  }
  std::string SaveOf(Host& of) {
    of.server.Stop();
    auto saved = of.server.Save();
    EXPECT_TRUE(saved.ok());
    return *saved;
  }

  std::unique_ptr<vmm::GuestMemory> memory = vmm::GuestMemory::Create(kRam).value();
  Host host{*memory};
  EchoDevice echo{"echo", *host.loop};
  FakeVmbusGuest guest{host.synic, *memory, *host.loop, 1000};
  FakeVmbusGuest::Channel* channel = nullptr;

  void TearDown() override { host.server.RemoveDevice(echo); }
};

TEST_F(VmbusServerTest, AGuestOfEveryVersionConnectsTalksAndLeaves) {
  for (const uint32_t version : vmbus::kVersions) {
    ASSERT_TRUE(guest.Connect(version));
    EXPECT_EQ(host.server.NegotiatedVersion(),
              fmt::format("{}.{}", version >> 16, version & 0xffff));
    guest.RequestOffers();
    EXPECT_TRUE(guest.all_offers_delivered);
    channel = guest.Find(echo.offer().interface_id);
    ASSERT_NE(channel, nullptr);
    ASSERT_TRUE(guest.Open(*channel, 4));
    for (uint64_t id = 1; id < 100; ++id) ExpectEcho(id);
    EXPECT_TRUE(guest.Close(*channel));
    EXPECT_THAT(echo.log, ElementsAre("close 0"));
    EXPECT_THAT(host.synic.doorbells, IsEmpty());
    ASSERT_TRUE(guest.Open(*channel, 4));
    EXPECT_TRUE(guest.Unload());
    EXPECT_EQ(host.server.NegotiatedVersion(), std::nullopt);
    EXPECT_THAT(echo.log, ElementsAre("close 0", "close 0"));
    echo.log.clear();
  }
  EXPECT_EQ(host.connection_changes, 2 * static_cast<int>(vmbus::kVersions.size()));
}

TEST_F(VmbusServerTest, AVersionTooHighIsRejectedAndTheNextOneTried) {
  EXPECT_FALSE(guest.Connect(0x00060000));
  EXPECT_TRUE(guest.Connect(vmbus::kVersionWin81));  // as UEFI firmware does
}

TEST_F(VmbusServerTest, OtherConnectionsAndTypesAndSizesAreRefused) {
  const std::vector<uint8_t> message(8);
  EXPECT_EQ(host.server.OnGuestMessage(2, 1, message), vmm::HvStatus::kInvalidConnectionId);
  EXPECT_EQ(host.server.OnGuestMessage(1, 2, message), vmm::HvStatus::kInvalidParameter);
  EXPECT_EQ(host.server.OnGuestMessage(1, 1, std::vector<uint8_t>(241)),
            vmm::HvStatus::kInvalidParameter);
  EXPECT_EQ(host.server.OnGuestMessage(1, 1, message), vmm::HvStatus::kSuccess);
}

TEST_F(VmbusServerTest, ARefusedOpenIsAnsweredAndLeavesNoDoorbell) {
  ASSERT_TRUE(guest.Connect(vmbus::kVersionIron));
  guest.RequestOffers();
  channel = guest.Find(echo.offer().interface_id);
  echo.refuse = true;
  EXPECT_FALSE(guest.Open(*channel, 4));
  EXPECT_TRUE(guest.open_status.has_value());
  EXPECT_THAT(host.synic.doorbells, IsEmpty());
  echo.refuse = false;
  EXPECT_TRUE(guest.Open(*channel, 4));
  EXPECT_THAT(host.synic.doorbells, testing::SizeIs(1));
}

TEST_F(VmbusServerTest, DevicesComeAndGoWhileTheGuestRuns) {
  ConnectAndOpen();
  EchoDevice second("second", *host.loop);
  ASSERT_TRUE(host.server.AddDevice(second).ok());
  EXPECT_TRUE(second.started);
  guest.Pump();
  auto* other = guest.Find(second.offer().interface_id);
  ASSERT_NE(other, nullptr);
  EXPECT_EQ(other->offer.channel_id, 2u);
  ASSERT_TRUE(guest.Open(*other, 4));
  host.server.RemoveDevice(second);
  EXPECT_THAT(second.log, ElementsAre("close 0"));
  EXPECT_EQ(second.handle, nullptr);
  EXPECT_FALSE(second.started);
  guest.Pump();
  EXPECT_TRUE(other->rescinded);
  ExpectEcho(5);  // the first one goes on

  ASSERT_TRUE(host.server.AddDevice(second).ok());  // back before the guest let go
  guest.Pump();
  EXPECT_EQ(guest.Find(second.offer().interface_id), nullptr);
  guest.Release(*other);
  other = guest.Find(second.offer().interface_id);
  ASSERT_NE(other, nullptr);
  EXPECT_EQ(other->offer.channel_id, 2u);
  EXPECT_TRUE(guest.Open(*other, 4));
  host.server.RemoveDevice(second);
  host.server.RemoveDevice(second);  // a no-op
}

TEST_F(VmbusServerTest, TwoDevicesOfOneNameOrGuidAreRefused) {
  EchoDevice twin("echo", *host.loop), cousin("east", *host.loop);
  EXPECT_EQ(host.server.AddDevice(twin).error().code(), vmm::Code::kAlreadyExists);
  EXPECT_EQ(host.server.AddDevice(cousin).error().code(), vmm::Code::kAlreadyExists);
}

TEST_F(VmbusServerTest, SubChannelsComeWhenAskedForAndGoWithTheSession) {
  ASSERT_TRUE(guest.Connect(vmbus::kVersionIron));
  guest.RequestOffers();
  echo.handle->OfferSubChannels(2);  // not open: nothing happens
  guest.Pump();
  EXPECT_EQ(guest.channels.size(), 1u);
  channel = guest.Find(echo.offer().interface_id);
  ASSERT_TRUE(guest.Open(*channel, 4));
  echo.handle->OfferSubChannels(2);
  guest.Pump();
  ASSERT_EQ(guest.channels.size(), 3u);
  auto* sub = guest.Find(echo.offer().interface_id, 2);
  ASSERT_TRUE(guest.Open(*sub, 4));
  EXPECT_EQ(echo.channels.count(2), 1u);
  guest.Close(*channel);
  EXPECT_THAT(echo.log, ElementsAre("close 2", "close 0"));
  EXPECT_TRUE(sub->rescinded);
}

TEST_F(VmbusServerTest, SubChannelsWantedInASessionThatIsOverAreNotOffered) {
  ConnectAndOpen();
  vmbus::OpenChannel open = {};
  open.channel_id = channel->offer.channel_id;
  open.ring_gpadl = channel->gpadl;
  open.downstream_page_offset = 5;
  (void)guest.Post(VmbusMessage(GuestMessage::kCloseChannel, vmbus::ChannelOnly{open.channel_id}));
  (void)guest.Post(VmbusMessage(GuestMessage::kOpenChannel, open));
  echo.handle->OfferSubChannels(2);  // before the loop came to the close
  guest.Pump();
  EXPECT_EQ(echo.channels.size(), 1u);
  EXPECT_EQ(guest.channels.size(), 1u);
}

TEST_F(VmbusServerTest, WhileTheGuestTakesNoMessagesNoneAreHeardAndNoneAreLost) {
  ASSERT_TRUE(guest.Connect(vmbus::kVersionIron));
  guest.Pump();
  host.synic.refuse_messages = true;
  ASSERT_EQ(guest.Post(VmbusMessage(GuestMessage::kRequestOffers)), vmm::HvStatus::kSuccess);
  guest.Pump();
  const auto request = VmbusMessage(GuestMessage::kTlConnectRequest, vmbus::TlConnectRequest{});
  for (size_t i = 0; i < VmbusServer::kIncomingLimit; ++i) {
    EXPECT_EQ(guest.Post(request), vmm::HvStatus::kSuccess);
    guest.Pump();
  }
  EXPECT_EQ(guest.Post(request), vmm::HvStatus::kInsufficientBuffers);
  EXPECT_EQ(host.Count("vmbus_incoming_full"), 1u);
  EXPECT_EQ(host.Count("vmbus_messages"), 2u);
  EXPECT_GT(host.Count("vmbus_outgoing_waits"), 0u);
  host.synic.refuse_messages = false;
  host.clock.Advance(10'000'000);
  guest.Pump();
  EXPECT_TRUE(guest.all_offers_delivered);
  EXPECT_EQ(host.Count("vmbus_messages"), 2 + VmbusServer::kIncomingLimit);
}

TEST_F(VmbusServerTest, AGuestThatNeverStopsTalkingDoesNotKeepTheLoop) {
  // As another VP may: a second message is there before the first one is done with.
  vmbus::InitiateContact contact = {};
  contact.version = vmbus::kVersionWin10;
  const auto message = VmbusMessage(GuestMessage::kInitiateContact, contact);
  host.on_connection_change = [&] {
    if (host.connection_changes < 1000) {
      EXPECT_EQ(guest.Post(message), vmm::HvStatus::kSuccess);
    }
  };
  (void)guest.Post(message);
  for (int turn = 1; turn <= 10; ++turn) {
    host.loop->RunOnce(0);
    EXPECT_EQ(host.Count("vmbus_messages"), turn * VmbusServer::kIncomingLimit);
  }
  guest.Pump();
  EXPECT_EQ(host.Count("vmbus_messages"), 1000u);  // and none is forgotten
}

TEST_F(VmbusServerTest, AStoppedBusKeepsWhatItHasToSay) {
  ConnectAndOpen();
  host.server.Stop();
  EchoDevice second("second", *host.loop);
  ASSERT_TRUE(host.server.AddDevice(second).ok());
  EXPECT_FALSE(second.started);
  ASSERT_EQ(guest.Post(VmbusMessage(GuestMessage::kCloseChannel,
                                    vmbus::ChannelOnly{channel->offer.channel_id})),
            vmm::HvStatus::kSuccess);
  guest.Pump();
  EXPECT_EQ(guest.channels.size(), 1u);
  EXPECT_THAT(echo.log, IsEmpty());
  host.server.Start();
  guest.Pump();
  EXPECT_EQ(guest.channels.size(), 2u);
  EXPECT_THAT(echo.log, ElementsAre("close 0"));
  host.server.RemoveDevice(second);
}

TEST_F(VmbusServerTest, ResetForgetsTheGuestAndKeepsTheDevices) {
  ConnectAndOpen();
  (void)guest.Post(VmbusMessage(GuestMessage::kRequestOffers));
  host.server.Stop();
  host.server.Stop();
  host.server.Reset();
  EXPECT_THAT(echo.log, ElementsAre("close 0", "reset"));
  EXPECT_EQ(host.server.NegotiatedVersion(), std::nullopt);
  host.server.Start();
  guest.Pump();
  ConnectAndOpen();
  ExpectEcho(1);
}

// --- channels ---

TEST_F(VmbusServerTest, SignalsAreUnstuckAHundredMillisecondsAfterTheOpen) {
  ConnectAndOpen();
  const int before = guest.Interrupts(*channel, 1);
  const uint64_t runs = echo.runs;
  host.clock.Advance(99'000'000);
  guest.Pump();
  EXPECT_EQ(guest.Interrupts(*channel, 1), before);
  host.clock.Advance(2'000'000);
  guest.Pump();
  EXPECT_EQ(guest.Interrupts(*channel, 1), before + 1);
  EXPECT_EQ(echo.runs, runs + 1);
}

TEST_F(VmbusServerTest, ABatchRaisesOneInterrupt) {
  ConnectAndOpen();
  const int before = guest.Interrupts(*channel, 1);
  for (uint64_t id = 0; id < 20; ++id) guest.Send(*channel, MakePacket(id));
  guest.Pump();
  EXPECT_EQ(guest.Receive(*channel).size(), 20u);
  EXPECT_EQ(guest.Interrupts(*channel, 1), before + 1);
}

TEST_F(VmbusServerTest, ModifyMovesTheInterrupts) {
  ConnectAndOpen();
  guest.Say(VmbusMessage(GuestMessage::kModifyChannel,
                         vmbus::ModifyChannel{channel->offer.channel_id, 3}));
  EXPECT_EQ(guest.modify_status, vmbus::kStatusSuccess);
  EXPECT_EQ(guest.Interrupts(*channel, 3), 1);  // one may have been lost on the way
  const int old_vp = guest.Interrupts(*channel, 1);
  ExpectEcho(1);
  EXPECT_EQ(guest.Interrupts(*channel, 3), 2);
  EXPECT_EQ(guest.Interrupts(*channel, 1), old_vp);
  EXPECT_EQ(echo.channels[0]->target_vp(), 3u);
}

TEST_F(VmbusServerTest, AFullRingToTheGuestResumesWhenTheGuestReads) {
  ConnectAndOpen(1);
  uint64_t sent = 0, received = 0;
  while (guest.Send(*channel, MakePacket(sent, 500))) {
    ++sent;
    guest.Pump();  // answers until its own ring is full
  }
  EXPECT_GT(sent, 8u);
  for (int i = 0; i < 100; ++i) {
    for (const Packet& packet : guest.Receive(*channel))
      EXPECT_EQ(packet.transaction_id, received++);
    guest.Pump();
  }
  EXPECT_EQ(received, sent);
}

TEST_F(VmbusServerTest, APacketBetweenTheLastLookAndTheFlushIsSignalled) {
  ConnectAndOpen();
  Channel& mine = *echo.channels[0];
  bool unused = false;
  channel->send->Write(MakePacket(1), &unused);
  IncomingPacket packet;
  ASSERT_EQ(mine.Read(&packet), Channel::ReadStatus::kPacket);
  ASSERT_EQ(mine.Read(&packet), Channel::ReadStatus::kEmpty);
  ASSERT_TRUE(guest.Send(*channel, MakePacket(2)));  // signals if it finds the ring empty
  mine.Flush();
  guest.Pump();
  ASSERT_EQ(guest.Receive(*channel).size(), 1u);
}

TEST_F(VmbusServerTest, RoomIsSignalledThoughPacketsWereNotFlushedWhenItWasAskedFor) {
  ConnectAndOpen(1);
  Channel& mine = *echo.channels[0];
  const std::vector<uint8_t> payload(1000);  // 1024 in the ring, of 4096
  EXPECT_TRUE(mine.Write(PacketType::kInBand, 0, false, payload));
  mine.Flush();
  EXPECT_TRUE(mine.Write(PacketType::kInBand, 0, false, payload));
  EXPECT_TRUE(mine.Write(PacketType::kInBand, 0, false, payload));
  EXPECT_FALSE(mine.ReserveRoom(1512));
  size_t received = guest.Receive(*channel).size();
  mine.Flush();
  received += guest.Receive(*channel).size();
  EXPECT_EQ(received, 3u);
  const uint64_t runs = echo.runs;
  guest.Pump();
  EXPECT_EQ(echo.runs, runs + 1);
}

TEST_F(VmbusServerTest, AGuestThatDoesNotSignalRoomIsPolled) {
  ConnectAndOpen(1);
  host.clock.Advance(200'000'000);
  guest.Pump();
  channel->send->word(tests::FakeVmbusRing::kFeatureBits) = 0;
  uint64_t sent = 0, received = 0;
  while (guest.Send(*channel, MakePacket(sent, 500))) {
    ++sent;
    guest.Pump();
  }
  for (int i = 0; i < 100; ++i) {
    bool unused = false;
    for (const Packet& packet : channel->receive->ReadAll(&unused))
      EXPECT_EQ(packet.transaction_id, received++);
    host.clock.Advance(11'000'000);
    guest.Pump();
  }
  EXPECT_EQ(received, sent);
}

TEST_F(VmbusServerTest, OneRunOfAChannelIsBounded) {
  ConnectAndOpen(64);  // room for more than one run reads
  uint64_t sent = 0;
  while (channel->send->used() + 64 < channel->send->size())
    guest.Send(*channel, MakePacket(sent++));
  ASSERT_GT(sent, 5000u);
  const uint64_t runs = echo.runs;
  uint64_t received = 0;
  for (int i = 0; i < 100; ++i) {
    guest.Pump();
    received += guest.Receive(*channel).size();
  }
  EXPECT_EQ(received, sent);
  EXPECT_GT(echo.runs - runs, sent / 1100);
}

TEST_F(VmbusServerTest, ACorruptedRingStopsItsChannelAlone) {
  ConnectAndOpen();
  EchoDevice second("second", *host.loop);
  ASSERT_TRUE(host.server.AddDevice(second).ok());
  guest.Pump();
  auto* other = guest.Find(second.offer().interface_id);
  ASSERT_TRUE(guest.Open(*other, 4));
  other->send->word(tests::FakeVmbusRing::kIn) = 12;
  host.synic.Ring(other->offer.connection_id);
  guest.Pump();
  EXPECT_EQ(host.Count("vmbus_broken_rings"), 1u);
  ExpectEcho(1);
  EXPECT_TRUE(guest.Close(*other));
  EXPECT_TRUE(guest.Open(*other, 4));  // opened anew, it works
  host.server.RemoveDevice(second);
}

TEST_F(VmbusServerTest, DevicesReachTheGuestsBuffersAndAnswerByTransferPages) {
  ConnectAndOpen();
  Channel& mine = *echo.channels[0];
  const auto pages = guest.TakePages(40);
  ASSERT_TRUE(guest.MakeGpadl(channel->offer.channel_id, 77, pages));
  const auto ranges = mine.GpadlRanges(77);
  ASSERT_EQ(ranges.size(), 1u);
  EXPECT_EQ(ranges[0].pfns, pages);
  EXPECT_THAT(mine.GpadlRanges(channel->gpadl), IsEmpty());  // the rings are the bus's
  EXPECT_THAT(mine.GpadlRanges(78), IsEmpty());

  const TransferRange parts[] = {{100, 4096}, {60, 8192}};
  const uint8_t payload[8] = {1, 2, 3};
  EXPECT_TRUE(mine.WriteTransferPages(9, true, 0xcafe, parts, payload));
  mine.Flush();
  const auto packets = guest.Receive(*channel);
  ASSERT_EQ(packets.size(), 1u);
  EXPECT_EQ(packets[0].type, 7);
  EXPECT_EQ(packets[0].transaction_id, 9u);
  EXPECT_EQ(packets[0].payload, std::vector<uint8_t>(payload, payload + 8));
  const uint32_t expected[] = {0xcafe, 2, 100, 4096, 60, 8192};
  ASSERT_EQ(packets[0].header.size(), sizeof(expected));
  EXPECT_EQ(std::memcmp(packets[0].header.data(), expected, sizeof(expected)), 0);

  EXPECT_TRUE(guest.TeardownGpadl(channel->offer.channel_id, 77));
  EXPECT_THAT(mine.GpadlRanges(77), IsEmpty());
}

// --- saved state ---

TEST_F(VmbusServerTest, ARunningGuestNoticesNoRestore) {
  ConnectAndOpen();
  echo.handle->OfferSubChannels(1);
  guest.Pump();
  ASSERT_TRUE(guest.Open(*guest.Find(echo.offer().interface_id, 1), 4));
  for (uint64_t id = 0; id < 10; ++id) ExpectEcho(id);
  for (uint64_t id = 10; id < 14; ++id) guest.Send(*channel, MakePacket(id));  // not seen yet
  const std::string saved = SaveOf(host);

  Host target(*memory);
  EchoDevice moved("echo", *target.loop);
  ASSERT_TRUE(target.server.AddDevice(moved).ok());
  ASSERT_TRUE(target.server.Restore(1, saved).ok());
  EXPECT_EQ(*target.server.Save(), saved);
  EXPECT_EQ(moved.echoed, 10u);
  EXPECT_EQ(target.synic.doorbells.size(), 2u);
  EXPECT_EQ(target.server.NegotiatedVersion(), "5.3");
  target.server.Start();
  guest.MoveTo(target.synic, *target.loop);
  guest.Pump();
  EXPECT_THAT(guest.channels, testing::SizeIs(2));  // no offer, no rescind
  EXPECT_EQ(guest.Receive(*channel).size(), 4u);
  for (uint64_t id = 20; id < 30; ++id) ExpectEcho(id);
  EXPECT_EQ(moved.echoed, 24u);
  EXPECT_EQ(moved.channels.count(1), 1u);
  const int before = guest.Interrupts(*channel, 1);
  target.clock.Advance(101'000'000);
  guest.Pump();
  EXPECT_GT(guest.Interrupts(*channel, 1), before);  // unstuck
  EXPECT_TRUE(guest.Close(*channel));
  EXPECT_TRUE(guest.Unload());
  target.server.RemoveDevice(moved);
}

TEST_F(VmbusServerTest, EqualBytesAtEveryPointOfAGuestsLife) {
  EchoDevice second("second", *host.loop);
  ASSERT_TRUE(host.server.AddDevice(second).ok());
  const auto check = [&] {
    const std::string saved = SaveOf(host);
    Host target(*memory);
    EchoDevice a("echo", *target.loop), b("second", *target.loop);
    ASSERT_TRUE(target.server.AddDevice(b).ok());  // in another order
    ASSERT_TRUE(target.server.AddDevice(a).ok());
    ASSERT_TRUE(target.server.Restore(1, saved).ok());
    state::Vmbus first, again;
    first.ParseFromString(saved);
    again.ParseFromString(*target.server.Save());
    EXPECT_EQ(first.control().SerializeAsString(), again.control().SerializeAsString());
    EXPECT_EQ(first.outgoing_size(), again.outgoing_size());
    EXPECT_EQ(first.incoming_size(), again.incoming_size());
    target.server.RemoveDevice(a);
    target.server.RemoveDevice(b);
    host.server.Start();
  };
  check();
  ASSERT_TRUE(guest.Connect(vmbus::kVersionWin10));
  check();
  host.synic.refuse_messages = true;
  (void)guest.Post(VmbusMessage(GuestMessage::kRequestOffers));
  (void)guest.Post(VmbusMessage(GuestMessage::kRequestOffers));
  guest.Pump();
  check();  // offers wait to go out, and a message to be heard
  host.synic.refuse_messages = false;
  guest.Pump();
  check();
  channel = guest.Find(echo.offer().interface_id);
  ASSERT_TRUE(guest.Open(*channel, 4));
  check();
  host.server.RemoveDevice(second);
  ASSERT_TRUE(host.server.AddDevice(second).ok());
  check();  // revoked and back
  guest.Unload();
  check();
  host.server.RemoveDevice(second);
}

TEST_F(VmbusServerTest, WhatADeviceAskedForJustBeforeTheStopIsSaved) {
  ConnectAndOpen();
  echo.handle->OfferSubChannels(3);
  const std::string saved = SaveOf(host);  // the loop has not turned
  state::Vmbus state;
  ASSERT_TRUE(state.ParseFromString(saved));
  EXPECT_EQ(state.control().offers_size(), 4);
  EXPECT_EQ(state.outgoing_size(), 3);
}

TEST_F(VmbusServerTest, DevicesThatChangedWithTheHostAreRescindedAndOffered) {
  EchoDevice second("second", *host.loop), third("third", *host.loop);
  ASSERT_TRUE(host.server.AddDevice(second).ok());
  ASSERT_TRUE(host.server.AddDevice(third).ok());
  ConnectAndOpen();
  auto* gone = guest.Find(second.offer().interface_id);
  ASSERT_TRUE(guest.Open(*gone, 4));
  auto* unsaved = guest.Find(third.offer().interface_id);
  ASSERT_TRUE(guest.Open(*unsaved, 4));
  third.save_error = vmm::Code::kUnimplemented;
  const std::string saved = SaveOf(host);

  Host target(*memory);
  EchoDevice moved("echo", *target.loop), same("third", *target.loop), extra("new", *target.loop);
  for (EchoDevice* device : {&moved, &same, &extra})
    ASSERT_TRUE(target.server.AddDevice(*device).ok());
  ASSERT_TRUE(target.server.Restore(1, saved).ok());
  EXPECT_THAT(same.log, ElementsAre("reset"));
  EXPECT_THAT(same.channels, IsEmpty());
  target.server.Start();
  guest.MoveTo(target.synic, *target.loop);
  guest.Pump();
  EXPECT_TRUE(gone->rescinded);
  EXPECT_TRUE(unsaved->rescinded);
  EXPECT_NE(guest.Find(extra.offer().interface_id), nullptr);
  ExpectEcho(3);
  guest.Release(*unsaved);
  auto* again = guest.Find(third.offer().interface_id);
  ASSERT_NE(again, nullptr);
  EXPECT_TRUE(guest.Open(*again, 4));
  guest.Unload();
  for (EchoDevice* device : {&moved, &same, &extra}) target.server.RemoveDevice(*device);
  host.server.RemoveDevice(second);
  host.server.RemoveDevice(third);
}

TEST_F(VmbusServerTest, ASavedStateIsTakenBackInPlace) {
  ConnectAndOpen();
  ExpectEcho(1);
  const std::string saved = SaveOf(host);
  host.server.Start();
  host.server.Stop();
  ASSERT_TRUE(host.server.Restore(1, saved).ok());
  EXPECT_THAT(echo.log, ElementsAre("close 0"));
  host.server.Start();
  ExpectEcho(2);
}

TEST_F(VmbusServerTest, DamagedStateIsRefused) {
  ConnectAndOpen();
  const std::string saved = SaveOf(host);
  state::Vmbus state;
  ASSERT_TRUE(state.ParseFromString(saved));
  const auto refused = [&](const std::function<void(state::Vmbus*)>& damage) {
    state::Vmbus copy = state;
    damage(&copy);
    return !host.server.Restore(1, copy.SerializeAsString()).ok();
  };
  EXPECT_FALSE(host.server.Restore(1, "\xff\xff\xff").ok());
  EXPECT_TRUE(refused([](auto* s) { s->mutable_control()->set_version(3); }));
  EXPECT_TRUE(refused([](auto* s) { s->add_outgoing()->set_vp(99); }));
  EXPECT_TRUE(refused([](auto* s) { s->add_outgoing()->set_message(std::string(300, 'x')); }));
  EXPECT_TRUE(refused([](auto* s) {
    for (int i = 0; i < 65; ++i) s->add_incoming("x");
  }));
  EXPECT_TRUE(refused([](auto* s) { s->add_incoming(std::string(241, 'x')); }));
  EXPECT_THAT(echo.log, IsEmpty());  // nothing was touched
  EXPECT_TRUE(refused([](auto* s) { s->mutable_devices(0)->set_state("damaged"); }));
  EXPECT_EQ(host.server.NegotiatedVersion(), std::nullopt);  // half a restore is undone
  EXPECT_THAT(echo.channels, IsEmpty());
  EXPECT_TRUE(host.server.Restore(1, saved).ok());
  host.server.Start();
  ExpectEcho(2);
}

TEST_F(VmbusServerTest, ADeviceThatFailsToSaveFailsTheSave) {
  host.server.Stop();
  echo.save_error = vmm::Code::kInternal;
  const auto saved = host.server.Save();
  ASSERT_FALSE(saved.ok());
  EXPECT_EQ(saved.error().ToString(), "saving 'echo': cannot be saved");
}

// --- threads ---

/// A guest that signals by the rules against a device on a thread of its own. A wake-up that is
/// lost on either side makes this stand still.
TEST(VmbusServerThreads, NoWakeUpIsLost) {
  auto memory = vmm::GuestMemory::Create(kRam).value();
  Host host(*memory);
  auto io = vmm::LoopThread::Start("io/0").value();
  EchoDevice echo("echo", io->loop());
  ASSERT_TRUE(host.server.AddDevice(echo).ok());
  host.server.Start();
  FakeVmbusGuest guest(host.synic, *memory, *host.loop, 1000);
  ASSERT_TRUE(guest.Connect(vmbus::kVersionIron));
  guest.RequestOffers();
  auto* channel = guest.Find(echo.offer().interface_id);
  ASSERT_TRUE(guest.Open(*channel, 1));

  constexpr uint64_t kPackets = 100'000;
  uint64_t sent = 0, received = 0;
  int seen_interrupts = 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (received < kPackets && std::chrono::steady_clock::now() < deadline) {
    // Sends as much as fits; then, like an idle guest, does nothing before an interrupt.
    Packet packet;
    packet.type = 6;
    packet.transaction_id = sent;
    packet.payload.assign((sent * 7 % 60) * 8, 1);
    while (sent < kPackets && guest.Send(*channel, packet)) {
      packet.transaction_id = ++sent;
      packet.payload.assign((sent * 7 % 60) * 8, 1);
    }
    const int interrupts = guest.Interrupts(*channel, 1);
    if (interrupts == seen_interrupts) {
      std::this_thread::yield();
      continue;
    }
    seen_interrupts = interrupts;
    for (const Packet& answer : guest.Receive(*channel))
      ASSERT_EQ(answer.transaction_id, received++);
  }
  EXPECT_EQ(received, kPackets);
  EXPECT_TRUE(guest.Unload());
  EXPECT_EQ(echo.echoed, kPackets);
  host.server.RemoveDevice(echo);
}

}  // namespace
}  // namespace kvmbus::virtdev
