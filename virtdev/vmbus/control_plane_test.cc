// SPDX-License-Identifier: Apache-2.0
#include "virtdev/vmbus/control_plane.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/fakes/vmbus_control_model.h"

namespace kvmbus::virtdev::vmbus {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using tests::VmbusMessage;
using State = ControlPlane::ChannelState;

struct Sent {
  uint32_t vp;
  HostMessage type;
  std::vector<uint8_t> body;
  template <typename T>
  T As() const {
    T value;
    KVMBUS_ASSERT(body.size() == sizeof(T));
    std::memcpy(&value, body.data(), sizeof(T));
    return value;
  }
};

/// A control plane, what it sent and what it did.
class ControlPlaneTest : public testing::Test, public Effects {
 protected:
  void SendMessage(uint32_t vp, std::span<const uint8_t> message) override {
    uint32_t type;
    std::memcpy(&type, message.data(), 4);
    sent.push_back({vp, static_cast<HostMessage>(type), {message.begin() + 8, message.end()}});
  }
  void DiscardMessages() override { ++discards; }
  vmm::Result<void> OpenChannel(uint32_t channel_id, const OpenRequest& request,
                                std::span<const uint64_t> ring_pfns) override {
    if (refuse_opens) return vmm::Error(vmm::Code::kUnavailable, "no");
    log.push_back("open " + std::to_string(channel_id) + " vp " +
                  std::to_string(request.target_vp) + " pages " + std::to_string(ring_pfns.size()));
    return {};
  }
  void CloseChannel(uint32_t id) override { log.push_back("close " + std::to_string(id)); }
  void RetargetChannel(uint32_t id, uint32_t vp) override {
    log.push_back("retarget " + std::to_string(id) + " to " + std::to_string(vp));
  }
  void OfferGone(uint32_t id) override { log.push_back("gone " + std::to_string(id)); }
  bool IsRamPage(uint64_t pfn) override { return pfn < 0x100000; }
  void ConnectionChanged() override { ++changes; }

  static ChannelOffer Device(uint8_t number) {
    ChannelOffer offer;
    offer.interface_id.bytes[0] = number;
    offer.instance_id.bytes[0] = 0xee;
    return offer;
  }
  template <typename... Args>
  void Say(Args&&... args) {
    control.HandleMessage(VmbusMessage(std::forward<Args>(args)...));
    control.CheckInvariants();
  }
  void Contact(uint32_t version, uint32_t vp = 1) {
    InitiateContact contact = {};
    contact.version = version;
    contact.target_vp = vp;
    contact.interrupt_page_or_target = version >= kVersionWin10V5 ? 2 : 0x5000;
    Say(GuestMessage::kInitiateContact, contact);
  }
  void Connect(uint32_t version = kVersionIron) {
    Contact(version);
    Say(GuestMessage::kRequestOffers);
    sent.clear();
  }
  void MakeGpadl(uint32_t channel, uint32_t id, uint32_t pages) {
    std::vector<uint64_t> words = {uint64_t{pages} * 4096};
    for (uint32_t i = 0; i < pages; ++i) words.push_back(0x100 + i);
    const GpadlHeader header{channel, id, static_cast<uint16_t>(words.size() * 8), 1};
    Say(GuestMessage::kGpadlHeader, header,
        std::span(words).first(std::min<size_t>(words.size(), 26)));
    for (size_t at = 26; at < words.size(); at += 28)
      Say(GuestMessage::kGpadlBody, GpadlBody{0, id},
          std::span(words).subspan(at, std::min<size_t>(28, words.size() - at)));
  }
  void Open(uint32_t channel, uint32_t gpadl, uint32_t downstream = 2, uint32_t vp = 2) {
    vmbus::OpenChannel open = {};
    open.channel_id = channel;
    open.open_id = 77;
    open.ring_gpadl = gpadl;
    open.target_vp = vp;
    open.downstream_page_offset = downstream;
    Say(GuestMessage::kOpenChannel, open);
  }
  void OpenNew(uint32_t channel) {
    MakeGpadl(channel, channel + 100, 4);
    Open(channel, channel + 100);
    EXPECT_EQ(sent.back().As<OpenResult>().status, kStatusSuccess);
    sent.clear();
    log.clear();
  }
  std::vector<HostMessage> Types() const {
    std::vector<HostMessage> types;
    for (const Sent& message : sent) types.push_back(message.type);
    return types;
  }
  uint64_t Count(std::string_view name) const {
    uint64_t value = ~uint64_t{0};
    control.VisitCounters([&](std::string_view visited, const vmm::Counter& counter) {
      if (visited == name) value = counter.value();
    });
    return value;
  }

  std::vector<Sent> sent;
  std::vector<std::string> log;
  int discards = 0, changes = 0;
  bool refuse_opens = false;
  ControlPlane control{*this, 4, kVersionIron};
};

// --- connection ---

TEST_F(ControlPlaneTest, EveryListedVersionIsAcceptedAndNoOther) {
  for (const uint32_t version : kVersions) {
    Contact(version);
    const auto response = sent.back().As<VersionResponse>();
    EXPECT_EQ(response.supported, 1);
    EXPECT_EQ(response.state, 0);
    EXPECT_EQ(response.connection_id, version >= kVersionWin10V5 ? 1 : version);
    EXPECT_EQ(sent.back().vp, version >= kVersionWin81 ? 1u : 0u);
    EXPECT_EQ(control.version(), version);
  }
  for (const uint32_t version : {0x0000000du, 0x00010001u, 0x00030001u, 0x00060000u, 0u}) {
    Contact(version);
    EXPECT_EQ(sent.back().As<VersionResponse>().supported, 0);
    EXPECT_FALSE(control.connected());
  }
}

TEST_F(ControlPlaneTest, AVersionAboveTheMaximumIsRejectedAtTheVpThatAsked) {
  ControlPlane old(*this, 4, kVersionWin10);
  InitiateContact contact = {};
  contact.version = kVersionWin10Rs3;
  contact.target_vp = 3;
  old.HandleMessage(VmbusMessage(GuestMessage::kInitiateContact, contact));
  EXPECT_EQ(sent.back().As<VersionResponse>().supported, 0);
  EXPECT_EQ(sent.back().vp, 3u);
}

TEST_F(ControlPlaneTest, ASintOrTrustLevelOrMonitorPageThatWeLackIsRefused) {
  InitiateContact contact = {};
  contact.version = kVersionIron;
  contact.interrupt_page_or_target = 3;
  Say(GuestMessage::kInitiateContact, contact);
  EXPECT_EQ(sent.back().As<VersionResponse>().supported, 0);
  contact.interrupt_page_or_target = 0x102;
  Say(GuestMessage::kInitiateContact, contact);
  EXPECT_EQ(sent.back().As<VersionResponse>().supported, 0);
  contact.interrupt_page_or_target = 2;
  contact.child_to_parent_monitor = 0x1000;
  Say(GuestMessage::kInitiateContact, contact);
  EXPECT_EQ(sent.back().As<VersionResponse>().state, kConnectionFailed);
  EXPECT_FALSE(control.connected());
  contact.parent_to_child_monitor = 0x2000;
  Say(GuestMessage::kInitiateContact, contact);
  EXPECT_TRUE(control.connected());
}

TEST_F(ControlPlaneTest, OffersComeSortedAndEndWithAllOffersDelivered) {
  control.AddOffer(Device(9), 0);
  control.AddOffer(Device(3), 0);
  Contact(kVersionIron);
  EXPECT_THAT(Types(), ElementsAre(HostMessage::kVersionResponse));
  sent.clear();
  Say(GuestMessage::kRequestOffers);
  EXPECT_THAT(Types(), ElementsAre(HostMessage::kOfferChannel, HostMessage::kOfferChannel,
                                   HostMessage::kAllOffersDelivered));
  const auto offer = sent[0].As<OfferChannel>();
  EXPECT_EQ(offer.interface_id.bytes[0], 3);
  EXPECT_EQ(offer.channel_id, 2u);
  EXPECT_EQ(offer.connection_id, 0x2002u);
  EXPECT_EQ(offer.monitor_id, 0xff);
  EXPECT_EQ(offer.is_dedicated, 1);
  sent.clear();
  Say(GuestMessage::kRequestOffers);
  EXPECT_THAT(sent, IsEmpty());
  EXPECT_EQ(Count("vmbus_out_of_state"), 1u);
}

TEST_F(ControlPlaneTest, AllOffersDeliveredComesWithoutOffersToo) {
  Contact(kVersionWin8);
  sent.clear();
  Say(GuestMessage::kRequestOffers);
  EXPECT_THAT(Types(), ElementsAre(HostMessage::kAllOffersDelivered));
}

TEST_F(ControlPlaneTest, UnloadIsAnsweredEvenWithoutAConnection) {
  Say(GuestMessage::kUnload);
  EXPECT_THAT(Types(), ElementsAre(HostMessage::kUnloadComplete));
}

TEST_F(ControlPlaneTest, UnloadClosesEverythingBeforeItIsAnswered) {
  control.AddOffer(Device(1), 0);
  Connect();
  OpenNew(1);
  Say(GuestMessage::kUnload);
  EXPECT_THAT(log, ElementsAre("close 1"));
  EXPECT_THAT(Types(), ElementsAre(HostMessage::kUnloadComplete));
  EXPECT_EQ(sent[0].vp, 1u);
  EXPECT_FALSE(control.connected());
  Connect();  // the same offer again, with the same id
  EXPECT_EQ(control.channel_state(1), State::kOffered);
}

TEST_F(ControlPlaneTest, ANewContactIsAnImplicitReset) {
  control.AddOffer(Device(1), 0);
  control.AddOffer(Device(2), 0);
  Connect();
  OpenNew(1);
  control.Revoke(2);
  sent.clear();
  Contact(kVersionWin10, 3);
  EXPECT_THAT(log, ElementsAre("close 1", "gone 2"));
  EXPECT_THAT(Types(), ElementsAre(HostMessage::kVersionResponse));
  EXPECT_EQ(sent[0].vp, 3u);
  sent.clear();
  Say(GuestMessage::kRequestOffers);
  EXPECT_THAT(Types(), ElementsAre(HostMessage::kOfferChannel, HostMessage::kAllOffersDelivered));
}

TEST_F(ControlPlaneTest, NothingButContactUnloadAndCloseReservedIsHeardBeforeTheConnection) {
  control.AddOffer(Device(1), 0);
  Say(GuestMessage::kRequestOffers);
  MakeGpadl(1, 5, 4);
  Open(1, 5);
  EXPECT_THAT(sent, IsEmpty());
  EXPECT_EQ(Count("vmbus_out_of_state"), 3u);
  Say(GuestMessage::kCloseReservedChannel, CloseReservedChannel{9, 2, 2});
  EXPECT_EQ(sent.back().type, HostMessage::kCloseReservedResponse);
  EXPECT_EQ(sent.back().vp, 2u);
  sent.clear();
  Say(GuestMessage::kCloseReservedChannel, CloseReservedChannel{9, 99, 2});
  Say(GuestMessage::kCloseReservedChannel, CloseReservedChannel{9, 1, 5});
  EXPECT_THAT(sent, IsEmpty());
}

TEST_F(ControlPlaneTest, EveryTruncationOfEveryMessageIsRefused) {
  control.AddOffer(Device(1), 0);
  Connect();
  uint64_t refused = Count("vmbus_malformed");
  for (const GuestMessageRule& rule : kGuestMessageRules) {
    for (size_t size = 0; size < rule.body_bytes; ++size) {
      std::vector<uint8_t> message(8 + size);
      const auto type = static_cast<uint32_t>(rule.type);
      std::memcpy(message.data(), &type, 4);
      control.HandleMessage(message);
      EXPECT_EQ(Count("vmbus_malformed"), ++refused);
    }
  }
  for (size_t size = 0; size < 8; ++size) {
    control.HandleMessage(std::vector<uint8_t>(size, 3));
    EXPECT_EQ(Count("vmbus_malformed"), ++refused);
  }
  control.HandleMessage(std::vector<uint8_t>(241, 3));
  EXPECT_EQ(Count("vmbus_malformed"), ++refused);
  EXPECT_THAT(sent, IsEmpty());
  EXPECT_TRUE(control.connected());
}

TEST_F(ControlPlaneTest, MessagesOfLaterVersionsAreRefused) {
  control.AddOffer(Device(1), 0);
  Connect(kVersionWin10);
  OpenNew(1);
  Say(GuestMessage::kModifyChannel, ModifyChannel{1, 3});
  EXPECT_THAT(log, IsEmpty());
  Say(GuestMessage::kTlConnectRequest, TlConnectRequest{});  // known, but its answer is not
  EXPECT_THAT(sent, IsEmpty());
  EXPECT_EQ(Count("vmbus_malformed"), 1u);
}

TEST_F(ControlPlaneTest, SocketsAndReservedChannelsAreRefusedCleanly) {
  Connect();
  TlConnectRequest request = {};
  request.endpoint.bytes[3] = 9;
  Say(GuestMessage::kTlConnectRequest, request);
  EXPECT_EQ(sent.back().As<TlConnectResult>().status, kStatusConnectionRefused);
  EXPECT_EQ(sent.back().As<TlConnectResult>().endpoint.bytes[3], 9);
  sent.clear();
  Say(GuestMessage::kOpenReservedChannel, OpenReservedChannel{});
  EXPECT_THAT(sent, IsEmpty());
}

// --- GPADLs ---

TEST_F(ControlPlaneTest, AGpadlOfManyMessagesIsAcceptedOnceAndGivenBack) {
  control.AddOffer(Device(1), 0);
  Connect();
  MakeGpadl(1, 7, 4096);  // 16 MiB, a network card's receive buffer
  ASSERT_THAT(Types(), ElementsAre(HostMessage::kGpadlCreated));
  EXPECT_EQ(sent[0].As<GpadlCreated>().status, kStatusSuccess);
  const auto ranges = control.GpadlRanges(1, 7);
  ASSERT_EQ(ranges.size(), 1u);
  EXPECT_EQ(ranges[0].bytes, 16u << 20);
  EXPECT_EQ(ranges[0].pfns.size(), 4096u);
  EXPECT_THAT(control.GpadlRanges(1, 8), IsEmpty());
  Say(GuestMessage::kGpadlTeardown, GpadlTeardown{1, 7});
  EXPECT_EQ(sent.back().As<GpadlTorndown>().gpadl_id, 7u);
  EXPECT_THAT(control.GpadlRanges(1, 7), IsEmpty());
  sent.clear();
  Say(GuestMessage::kGpadlTeardown, GpadlTeardown{1, 7});
  EXPECT_THAT(sent, IsEmpty());
}

TEST_F(ControlPlaneTest, ALastBodyOfFullSizeIsCut) {
  control.AddOffer(Device(1), 0);
  Connect();
  const uint64_t words[] = {2 * 4096, 5};
  Say(GuestMessage::kGpadlHeader, GpadlHeader{1, 3, 24, 1}, words);
  const std::vector<uint64_t> rest(28, 6);
  Say(GuestMessage::kGpadlBody, GpadlBody{1, 3}, rest);
  EXPECT_EQ(sent.back().As<GpadlCreated>().status, kStatusSuccess);
  EXPECT_THAT(control.GpadlRanges(1, 3)[0].pfns, ElementsAre(5, 6));
}

TEST_F(ControlPlaneTest, ImpossibleGpadlsAreRefused) {
  control.AddOffer(Device(1), 0);
  Connect();
  const auto refused = [&](uint16_t bytes, uint16_t count, std::vector<uint64_t> words) {
    sent.clear();
    Say(GuestMessage::kGpadlHeader, GpadlHeader{1, 9, bytes, count}, words);
    return sent.size() == 1 && sent[0].As<GpadlCreated>().status != kStatusSuccess;
  };
  EXPECT_TRUE(refused(16, 0, {4096, 5}));
  EXPECT_TRUE(refused(12, 1, {4096, 5}));
  EXPECT_TRUE(refused(16, 2, {4096, 5}));
  EXPECT_TRUE(refused(16, 1, {0, 5}));                            // no bytes
  EXPECT_TRUE(refused(16, 1, {uint64_t{0x1000} << 32 | 16, 5}));  // offset beyond the page
  EXPECT_TRUE(refused(16, 1, {4097, 5}));                         // a page is missing
  EXPECT_TRUE(refused(24, 1, {4096, 5, 6}));                      // a page too many
  EXPECT_TRUE(refused(16, 1, {4096, 0x100000}));                  // not RAM
  EXPECT_TRUE(refused(16, 1, {0xffffffffffffffff, 5}));
  EXPECT_FALSE(refused(32, 2, {100, 5, uint64_t{4000} << 32 | 96, 6}));
  EXPECT_TRUE(refused(16, 1, {4096, 5}));  // the id is taken
}

TEST_F(ControlPlaneTest, AGpadlForAChannelThatTheGuestDoesNotKnowIsNotAnswered) {
  control.AddOffer(Device(1), 0);
  Contact(kVersionIron);
  sent.clear();
  MakeGpadl(1, 5, 4);   // not offered yet
  MakeGpadl(17, 5, 4);  // not there
  EXPECT_THAT(sent, IsEmpty());
}

TEST_F(ControlPlaneTest, GpadlsUnderWayAreLimitedAndUnique) {
  control.AddOffer(Device(1), 0);
  control.AddOffer(Device(2), 0);
  Connect();
  for (uint32_t id = 0; id < GpadlTable::kMaxInProgress; ++id)
    Say(GuestMessage::kGpadlHeader, GpadlHeader{1, id, 16, 1});
  EXPECT_THAT(sent, IsEmpty());
  Say(GuestMessage::kGpadlHeader, GpadlHeader{2, 3, 16, 1});  // the id is under way elsewhere
  EXPECT_EQ(sent.back().As<GpadlCreated>().channel_id, 2u);
  Say(GuestMessage::kGpadlHeader, GpadlHeader{1, 1000, 16, 1});
  EXPECT_NE(sent.back().As<GpadlCreated>().status, kStatusSuccess);
  EXPECT_EQ(Count("vmbus_gpadl_limit_hit"), 1u);
  const uint64_t words[] = {4096, 5};
  Say(GuestMessage::kGpadlBody, GpadlBody{0, 3}, words);
  EXPECT_EQ(sent.back().As<GpadlCreated>().status, kStatusSuccess);
  MakeGpadl(2, 3, 1);  // now the id is free for another channel
  EXPECT_EQ(sent.back().As<GpadlCreated>().status, kStatusSuccess);
}

TEST_F(ControlPlaneTest, AllGpadlPagesAndAllGpadlsAreLimited) {
  control.AddOffer(Device(1), 0);
  Connect();
  uint32_t accepted = 0;
  for (uint32_t id = 0; id < 100; ++id) {
    MakeGpadl(1, id, 8000);
    accepted += sent.back().As<GpadlCreated>().status == kStatusSuccess ? 1 : 0;
    sent.clear();
  }
  EXPECT_EQ(accepted, GpadlTable::kMaxPages / 8001);
  EXPECT_GT(Count("vmbus_gpadl_limit_hit"), 0u);
  Connect();
  for (uint32_t id = 0; id <= GpadlTable::kMaxGpadls; ++id) MakeGpadl(1, id, 1);
  EXPECT_NE(sent.back().As<GpadlCreated>().status, kStatusSuccess);
  EXPECT_EQ(sent[sent.size() - 2].As<GpadlCreated>().status, kStatusSuccess);
}

// --- channels ---

TEST_F(ControlPlaneTest, OpenCloseOpen) {
  control.AddOffer(Device(1), 0);
  Connect();
  MakeGpadl(1, 5, 8);
  sent.clear();
  for (int round = 0; round < 2; ++round) {
    Open(1, 5, 4, 3);
    EXPECT_THAT(log, ElementsAre("open 1 vp 3 pages 8"));
    const auto result = sent.back().As<OpenResult>();
    EXPECT_EQ(result.channel_id, 1u);
    EXPECT_EQ(result.open_id, 77u);
    EXPECT_EQ(result.status, kStatusSuccess);
    sent.clear();
    log.clear();
    Say(GuestMessage::kCloseChannel, ChannelOnly{1});
    EXPECT_THAT(log, ElementsAre("close 1"));
    EXPECT_THAT(sent, IsEmpty());
    log.clear();
  }
}

TEST_F(ControlPlaneTest, UnusableRingsAreRefused) {
  control.AddOffer(Device(1), 0);
  control.AddOffer(Device(2), 0);
  Connect();
  MakeGpadl(1, 5, 8);
  MakeGpadl(2, 6, 8);
  MakeGpadl(1, 8, 3);
  MakeGpadl(1, 9, ControlPlane::kMaxRingPages + 1);
  const uint64_t odd[] = {4 * 4096 - 8, 1, 2, 3, 4};
  Say(GuestMessage::kGpadlHeader, GpadlHeader{1, 7, sizeof(odd), 1}, odd);
  const auto refused = [&](uint32_t gpadl, uint32_t downstream, uint32_t vp) {
    Open(1, gpadl, downstream, vp);
    return sent.back().As<OpenResult>().status != kStatusSuccess;
  };
  EXPECT_TRUE(refused(99, 4, 0));  // no such GPADL
  EXPECT_TRUE(refused(6, 4, 0));   // another channel's
  EXPECT_TRUE(refused(7, 2, 0));   // not whole pages
  EXPECT_TRUE(refused(8, 2, 0));   // too small for two rings
  EXPECT_TRUE(refused(9, 2, 0));   // too large
  EXPECT_TRUE(refused(5, 1, 0));
  EXPECT_TRUE(refused(5, 7, 0));
  EXPECT_TRUE(refused(5, 0xffffffff, 0));
  EXPECT_TRUE(refused(5, 4, 4));  // no such VP
  refuse_opens = true;
  EXPECT_TRUE(refused(5, 4, 0));
  refuse_opens = false;
  EXPECT_EQ(control.channel_state(1), State::kOffered);
  EXPECT_THAT(log, IsEmpty());
  EXPECT_FALSE(refused(5, 4, kNoVp));
}

TEST_F(ControlPlaneTest, OpenChannelsAndTheirPagesAreLimited) {
  for (uint32_t i = 0; i < ControlPlane::kMaxOpenChannels + 1; ++i) {
    ChannelOffer offer = Device(1);
    std::memcpy(&offer.instance_id.bytes[4], &i, 4);
    control.AddOffer(offer, 0);
  }
  Connect();
  for (uint32_t id = 1; id <= ControlPlane::kMaxOpenChannels; ++id) OpenNew(id);
  MakeGpadl(ControlPlane::kMaxOpenChannels + 1, 1, 4);
  Open(ControlPlane::kMaxOpenChannels + 1, 1);
  EXPECT_NE(sent.back().As<OpenResult>().status, kStatusSuccess);
  EXPECT_EQ(Count("vmbus_channel_limit_hit"), 1u);
  Connect();
  uint32_t opened = 0;
  for (uint32_t id = 1; id <= 20; ++id) {
    MakeGpadl(id, id, 2048);
    Open(id, id);
    opened += sent.back().As<OpenResult>().status == kStatusSuccess ? 1 : 0;
  }
  EXPECT_EQ(opened, ControlPlane::kMaxOpenRingPages / 2048);
}

TEST_F(ControlPlaneTest, AnOpenChannelsRingStaysUntilTheClose) {
  control.AddOffer(Device(1), 0);
  Connect();
  OpenNew(1);
  Say(GuestMessage::kGpadlTeardown, GpadlTeardown{1, 101});
  EXPECT_THAT(sent, IsEmpty());
  Say(GuestMessage::kRelIdReleased, ChannelOnly{1});
  EXPECT_EQ(control.channel_state(1), State::kOpen);
  Say(GuestMessage::kCloseChannel, ChannelOnly{1});
  Say(GuestMessage::kGpadlTeardown, GpadlTeardown{1, 101});
  EXPECT_THAT(Types(), ElementsAre(HostMessage::kGpadlTorndown));
}

TEST_F(ControlPlaneTest, OpenAndCloseOutOfStateChangeNothing) {
  control.AddOffer(Device(1), 0);
  Connect();
  Say(GuestMessage::kCloseChannel, ChannelOnly{1});
  Say(GuestMessage::kCloseChannel, ChannelOnly{8});
  Open(8, 1);
  EXPECT_THAT(sent, IsEmpty());
  OpenNew(1);
  Open(1, 101);
  EXPECT_THAT(sent, IsEmpty());
  EXPECT_THAT(log, IsEmpty());
}

TEST_F(ControlPlaneTest, ARemovedDeviceIsRescindedAndItsIdFreeOnlyAfterTheRelease) {
  control.AddOffer(Device(1), 0);
  Connect();
  OpenNew(1);
  Say(GuestMessage::kGpadlHeader, GpadlHeader{1, 55, 16, 1});  // under way
  control.Revoke(1);
  EXPECT_THAT(log, ElementsAre("close 1"));
  EXPECT_THAT(Types(), ElementsAre(HostMessage::kRescindChannelOffer, HostMessage::kGpadlCreated));
  EXPECT_NE(sent[1].As<GpadlCreated>().status, kStatusSuccess);
  sent.clear();
  EXPECT_EQ(control.AddOffer(Device(2), 0), 2u);  // 1 is still the guest's
  EXPECT_THAT(Types(), ElementsAre(HostMessage::kOfferChannel));
  sent.clear();
  Open(1, 101);
  Say(GuestMessage::kCloseChannel, ChannelOnly{1});
  control.Revoke(1);
  EXPECT_THAT(sent, IsEmpty());
  MakeGpadl(1, 56, 2);  // was on its way; it must not hang
  EXPECT_EQ(sent.back().As<GpadlCreated>().status, kStatusSuccess);
  Say(GuestMessage::kGpadlTeardown, GpadlTeardown{1, 101});
  EXPECT_EQ(sent.back().type, HostMessage::kGpadlTorndown);
  log.clear();
  Say(GuestMessage::kRelIdReleased, ChannelOnly{1});
  EXPECT_THAT(log, ElementsAre("gone 1"));
  EXPECT_EQ(control.AddOffer(Device(3), 0), 1u);
}

TEST_F(ControlPlaneTest, ADeviceThatComesBackIsOfferedAnewAfterTheRelease) {
  control.AddOffer(Device(1), 0);
  Connect();
  control.Revoke(1);
  sent.clear();
  EXPECT_EQ(control.AddOffer(Device(1), 0), 1u);
  EXPECT_EQ(control.channel_state(1), State::kReoffered);
  Open(1, 5);
  EXPECT_THAT(sent, IsEmpty());
  control.Revoke(1);  // gone again: no second rescind
  EXPECT_EQ(control.channel_state(1), State::kRevoked);
  control.AddOffer(Device(1), 0);
  EXPECT_THAT(sent, IsEmpty());
  Say(GuestMessage::kRelIdReleased, ChannelOnly{1});
  EXPECT_THAT(Types(), ElementsAre(HostMessage::kOfferChannel));
  EXPECT_EQ(sent[0].As<OfferChannel>().channel_id, 1u);
}

TEST_F(ControlPlaneTest, AGuestMayGiveUpADeviceThatStays) {
  control.AddOffer(Device(1), 0);
  Connect();
  MakeGpadl(1, 5, 4);
  Say(GuestMessage::kRelIdReleased, ChannelOnly{1});
  EXPECT_EQ(control.channel_state(1), State::kUnknown);
  log.clear();
  control.Revoke(1);
  EXPECT_THAT(log, ElementsAre("gone 1"));
  EXPECT_THAT(Types(), ElementsAre(HostMessage::kGpadlCreated));  // no rescind of the unknown
}

TEST_F(ControlPlaneTest, SubChannelsLiveWithTheirPrimarysSession) {
  control.AddOffer(Device(1), 0);
  Connect();
  EXPECT_EQ(control.AddOffer(Device(1), 1), 0u);  // not before the primary is open
  OpenNew(1);
  EXPECT_EQ(control.AddOffer(Device(1), 1), 2u);
  EXPECT_EQ(control.AddOffer(Device(1), 2), 3u);
  EXPECT_EQ(control.AddOffer(Device(1), 1), 2u);
  ASSERT_EQ(sent.size(), 2u);
  EXPECT_EQ(sent[1].As<OfferChannel>().subchannel_index, 2);
  OpenNew(2);
  Say(GuestMessage::kCloseChannel, ChannelOnly{1});
  EXPECT_THAT(log, ElementsAre("close 2", "close 1"));
  EXPECT_THAT(Types(),
              ElementsAre(HostMessage::kRescindChannelOffer, HostMessage::kRescindChannelOffer));
  EXPECT_EQ(control.AddOffer(Device(1), 1), 2u);
  EXPECT_EQ(control.channel_state(2), State::kRevoked);  // its session is over
  sent.clear();
  OpenNew(1);  // a new session
}

TEST_F(ControlPlaneTest, AGivenUpSubChannelMayBeAskedForAgain) {
  control.AddOffer(Device(1), 0);
  Connect();
  OpenNew(1);
  control.AddOffer(Device(1), 1);
  Say(GuestMessage::kRelIdReleased, ChannelOnly{2});
  sent.clear();
  EXPECT_EQ(control.AddOffer(Device(1), 1), 2u);
  EXPECT_THAT(Types(), ElementsAre(HostMessage::kOfferChannel));
}

TEST_F(ControlPlaneTest, ModifyMovesTheInterruptsAndIsAnsweredFrom53On) {
  control.AddOffer(Device(1), 0);
  Connect(kVersionWin10Rs5);
  OpenNew(1);
  Say(GuestMessage::kModifyChannel, ModifyChannel{1, 3});
  EXPECT_THAT(log, ElementsAre("retarget 1 to 3"));
  EXPECT_THAT(sent, IsEmpty());
  Connect(kVersionIron);
  OpenNew(1);
  Say(GuestMessage::kModifyChannel, ModifyChannel{1, 0});
  EXPECT_EQ(sent.back().As<ModifyChannelResponse>().status, kStatusSuccess);
  for (const ModifyChannel bad : {ModifyChannel{1, 4}, {1, kNoVp}, {2, 1}}) {
    Say(GuestMessage::kModifyChannel, bad);
    EXPECT_NE(sent.back().As<ModifyChannelResponse>().status, kStatusSuccess);
    EXPECT_EQ(sent.back().As<ModifyChannelResponse>().channel_id, bad.channel_id);
  }
  EXPECT_EQ(log.size(), 1u);
}

TEST_F(ControlPlaneTest, AllChannelIdsCanBeTakenAndNoMore) {
  for (uint32_t i = 1; i <= kMaxChannelId + 1; ++i) {
    ChannelOffer offer = Device(1);
    std::memcpy(&offer.instance_id.bytes[4], &i, 4);
    EXPECT_EQ(control.AddOffer(offer, 0), i <= kMaxChannelId ? i : 0);
  }
}

// --- saved state ---

class SavedControlTest : public ControlPlaneTest {
 protected:
  /// Device 1 is open with a sub-channel, 2 offered, 3 revoked and held, 4 back but not released.
  void SetUp() override {
    for (uint8_t i = 1; i <= 4; ++i) control.AddOffer(Device(i), 0);
    Connect();
    OpenNew(1);
    control.AddOffer(Device(1), 1);
    control.Revoke(3);
    control.Revoke(4);
    control.AddOffer(Device(4), 0);
    MakeGpadl(2, 9, 100);
    Say(GuestMessage::kGpadlHeader, GpadlHeader{2, 10, 160, 1});
    control.Save(&saved);
    sent.clear();
    log.clear();
  }
  vmm::Result<void> RestoreInto(ControlPlane& target, std::vector<ChannelOffer> present) {
    reopen.clear();
    const auto result = target.Restore(saved, present, &reopen);
    target.CheckInvariants();
    return result;
  }
  static std::string Bytes(const ControlPlane& of) {
    state::VmbusControl state;
    of.Save(&state);
    return state.SerializeAsString();
  }

  state::VmbusControl saved;
  std::vector<ControlPlane::Reopen> reopen;
  ControlPlane other{*this, 4, kVersionIron};
};

TEST_F(SavedControlTest, TheGuestNoticesNothing) {
  ASSERT_TRUE(RestoreInto(other, {Device(4), Device(2), Device(1)}).ok());
  EXPECT_THAT(sent, IsEmpty());
  EXPECT_THAT(log, IsEmpty());
  ASSERT_EQ(reopen.size(), 1u);
  EXPECT_EQ(reopen[0].channel_id, 1u);
  EXPECT_THAT(reopen[0].ring_pfns, ElementsAre(0x100, 0x101, 0x102, 0x103));
  EXPECT_EQ(reopen[0].request.open_id, 77u);
  EXPECT_EQ(Bytes(other), saved.SerializeAsString());
}

TEST_F(SavedControlTest, AMissingDeviceIsRescindedAndANewOneOffered) {
  ASSERT_TRUE(RestoreInto(other, {Device(2), Device(4), Device(9)}).ok());
  EXPECT_THAT(Types(), ElementsAre(HostMessage::kRescindChannelOffer,
                                   HostMessage::kRescindChannelOffer, HostMessage::kOfferChannel));
  EXPECT_THAT(reopen, IsEmpty());
  EXPECT_THAT(log, IsEmpty());  // there is no device to close
  EXPECT_EQ(sent[2].As<OfferChannel>().interface_id.bytes[0], 9);
  EXPECT_EQ(other.channel_state(1), State::kRevoked);
}

TEST_F(SavedControlTest, ADeviceThatWasGoneAndIsBackWaitsForTheRelease) {
  ASSERT_TRUE(RestoreInto(other, {Device(1), Device(2), Device(3)}).ok());
  EXPECT_THAT(sent, IsEmpty());
  EXPECT_EQ(other.channel_state(3), State::kReoffered);
  EXPECT_EQ(other.channel_state(4), State::kRevoked);  // and this one went
}

TEST_F(SavedControlTest, RestoreClosesWhatIsOpen) {
  ASSERT_TRUE(RestoreInto(control, {Device(1), Device(2), Device(4)}).ok());
  EXPECT_THAT(log, ElementsAre("close 1"));
  EXPECT_THAT(sent, IsEmpty());
}

TEST_F(SavedControlTest, DamagedStateIsRefusedAndChangesNothing) {
  const std::string before = Bytes(control);
  const state::VmbusControl good = saved;
  const auto refused = [&](const std::function<void(state::VmbusControl*)>& damage) {
    saved = good;
    damage(&saved);
    const bool ok = RestoreInto(control, {Device(1), Device(2), Device(4)}).ok();
    return !ok && log.empty() && sent.empty() && Bytes(control) == before;
  };
  EXPECT_TRUE(refused([](auto* s) { s->set_version(7); }));
  EXPECT_TRUE(refused([](auto* s) { s->set_connected(false); }));
  EXPECT_TRUE(refused([](auto* s) { s->set_offers_sent(false); }));
  EXPECT_TRUE(refused([](auto* s) { s->set_target_vp(4); }));
  EXPECT_TRUE(refused([](auto* s) { s->mutable_offers(0)->set_channel_id(0); }));
  EXPECT_TRUE(refused([](auto* s) { s->mutable_offers(0)->set_channel_id(2048); }));
  EXPECT_TRUE(refused([](auto* s) { s->mutable_offers(0)->set_channel_id(2); }));
  EXPECT_TRUE(refused([](auto* s) { s->mutable_offers(0)->set_state(5); }));
  EXPECT_TRUE(refused([](auto* s) { s->mutable_offers(0)->set_state(1); }));  // sub without primary
  EXPECT_TRUE(refused([](auto* s) { s->mutable_offers(0)->set_ring_gpadl(1); }));
  EXPECT_TRUE(refused([](auto* s) { s->mutable_offers(0)->set_target_vp(9); }));
  EXPECT_TRUE(refused([](auto* s) { s->mutable_offers(0)->set_downstream_page_offset(3); }));
  EXPECT_TRUE(refused([](auto* s) { s->mutable_offers(0)->set_instance_id("short"); }));
  EXPECT_TRUE(refused([](auto* s) { *s->add_offers() = s->offers(0); }));
  EXPECT_TRUE(refused([](auto* s) { s->mutable_gpadls(0)->set_channel_id(99); }));
  EXPECT_TRUE(refused([](auto* s) { s->mutable_gpadls(0)->set_complete(false); }));
  EXPECT_TRUE(refused([](auto* s) { s->mutable_gpadls(0)->set_range_count(0); }));
  EXPECT_TRUE(refused([](auto* s) { s->mutable_gpadls(0)->set_words(1, 0x100000); }));
  EXPECT_TRUE(refused([](auto* s) { *s->add_gpadls() = s->gpadls(0); }));
  EXPECT_TRUE(refused([](auto* s) { s->mutable_gpadls(0)->set_total_words(0xffffffff); }));
  EXPECT_TRUE(refused([](auto* s) {
    auto* twin = s->add_gpadls();
    *twin = s->gpadls(2);
    twin->set_channel_id(1);
  }));
  EXPECT_FALSE(refused([](auto*) {}));
}

// --- generated sequences ---

TEST(ControlPlaneSequences, ThousandsOfThemKeepWhatAGuestReliesOn) {
  tests::VmbusControlModel::Seen seen;
  for (uint32_t seed = 0; seed < 20000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    tests::VmbusControlModel model(
        [&random](uint32_t bound) { return static_cast<uint32_t>(random() % bound); });
    const uint32_t steps = 50 + random() % 300;
    for (uint32_t i = 0; i < steps; ++i) model.Step();
    model.Finish();
    EXPECT_FALSE(model.control().connected());
    seen.opens += model.seen().opens;
    seen.sub_channels += model.seen().sub_channels;
    seen.rescinds += model.seen().rescinds;
    seen.torndown += model.seen().torndown;
    seen.long_gpadls += model.seen().long_gpadls;
    seen.open_when_restored += model.seen().open_when_restored;
    seen.offered_again += model.seen().offered_again;
  }
  EXPECT_GT(seen.opens, 1000u);
  EXPECT_GT(seen.sub_channels, 1000u);
  EXPECT_GT(seen.rescinds, 1000u);
  EXPECT_GT(seen.torndown, 1000u);
  EXPECT_GT(seen.long_gpadls, 100u);
  EXPECT_GT(seen.open_when_restored, 1000u);
  EXPECT_GT(seen.offered_again, 100u);
}

}  // namespace
}  // namespace kvmbus::virtdev::vmbus
