// SPDX-License-Identifier: Apache-2.0
/// \file
/// A guest on a VMBus: connects, opens channels and talks through rings as Linux does. The fake
/// SynIC is its processor, a Loop that it turns by hand the host's main thread.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "tests/fakes/fake_synic.h"
#include "tests/fakes/fake_vmbus_ring.h"
#include "tests/fakes/vmbus_message.h"
#include "virtdev/vmbus/protocol.h"
#include "vmm/event/loop.h"

namespace kvmbus::tests {

class FakeVmbusGuest {
 public:
  struct Channel {
    virtdev::vmbus::OfferChannel offer = {};
    bool rescinded = false;
    bool open = false;
    uint32_t vp = 0;
    uint32_t gpadl = 0;
    std::unique_ptr<FakeVmbusRing> send;     ///< guest to host
    std::unique_ptr<FakeVmbusRing> receive;  ///< host to guest
  };

  /// Rings take guest pages from `first_page` on.
  FakeVmbusGuest(FakeSynic& synic, vmm::GuestMemory& memory, vmm::Loop& loop, uint64_t first_page)
      : synic_(&synic), memory_(memory), loop_(&loop), next_page_(first_page) {}

  /// The same guest on another host (its RAM came along).
  void MoveTo(FakeSynic& synic, vmm::Loop& loop) {
    synic_ = &synic;
    loop_ = &loop;
  }

  /// Lets the host work and takes its messages until nothing more comes.
  void Pump() {
    for (int quiet = 0; quiet < 3;) {
      loop_->RunOnce(0);
      quiet = TakeMessages() ? 0 : quiet + 1;
    }
  }
  /// HvPostMessage.
  vmm::HvStatus Post(const std::vector<uint8_t>& message) {
    return synic_->sink->OnGuestMessage(connection_id, 1, message);
  }
  /// Posts, and lets the host answer.
  void Say(const std::vector<uint8_t>& message) {
    while (Post(message) == vmm::HvStatus::kInsufficientBuffers) Pump();
    Pump();
  }

  bool Connect(uint32_t version) {
    connection_id = version >= virtdev::vmbus::kVersionWin10V5 ? 4 : 1;
    virtdev::vmbus::InitiateContact contact = {};
    contact.version = version;
    contact.interrupt_page_or_target = version >= virtdev::vmbus::kVersionWin10V5 ? 2 : 0;
    version_response.reset();
    channels.clear();
    Say(VmbusMessage(Guest::kInitiateContact, contact));
    return version_response.has_value() && version_response->supported == 1;
  }
  void RequestOffers() { Say(VmbusMessage(Guest::kRequestOffers)); }
  bool Unload() {
    unload_complete = false;
    Say(VmbusMessage(Guest::kUnload));
    channels.clear();
    return unload_complete;
  }

  /// The channel of an offer; nullptr if there is none.
  Channel* Find(const vmm::Guid& interface_id, uint16_t subchannel = 0) {
    for (auto& [id, channel] : channels) {
      if (channel.offer.interface_id == interface_id &&
          channel.offer.subchannel_index == subchannel && !channel.rescinded)
        return &channel;
    }
    return nullptr;
  }

  /// True if the host accepted it.
  bool MakeGpadl(uint32_t channel_id, uint32_t gpadl_id, const std::vector<uint64_t>& pfns) {
    std::vector<uint64_t> words = {pfns.size() * vmm::kPageSize};
    words.insert(words.end(), pfns.begin(), pfns.end());
    const virtdev::vmbus::GpadlHeader header{channel_id, gpadl_id,
                                             static_cast<uint16_t>(words.size() * 8), 1};
    gpadl_status.reset();
    const std::span<const uint64_t> all(words);
    Say(VmbusMessage(Guest::kGpadlHeader, header, all.first(std::min<size_t>(26, all.size()))));
    for (size_t at = 26; at < all.size(); at += 28)
      Say(VmbusMessage(Guest::kGpadlBody, virtdev::vmbus::GpadlBody{0, gpadl_id},
                       all.subspan(at, std::min<size_t>(28, all.size() - at))));
    return gpadl_status == virtdev::vmbus::kStatusSuccess;
  }
  /// True if the host confirmed it.
  bool TeardownGpadl(uint32_t channel_id, uint32_t gpadl_id) {
    torndown.reset();
    Say(VmbusMessage(Guest::kGpadlTeardown, virtdev::vmbus::GpadlTeardown{channel_id, gpadl_id}));
    return torndown == gpadl_id;
  }
  std::vector<uint64_t> TakePages(uint64_t count) {
    std::vector<uint64_t> pfns;
    for (uint64_t i = 0; i < count; ++i) pfns.push_back(next_page_++);
    return pfns;
  }

  /// Opens with rings of `pages` data pages each way.
  bool Open(Channel& channel, uint64_t pages, uint32_t vp = 1) {
    const uint32_t id = channel.offer.channel_id;
    const std::vector<uint64_t> pfns = TakePages(2 * (pages + 1));
    channel.gpadl = next_gpadl_++;
    if (!MakeGpadl(id, channel.gpadl, pfns)) return false;
    const std::span<const uint64_t> all(pfns);
    channel.send = MakeRing(all.first(pages + 1));
    channel.receive = MakeRing(all.subspan(pages + 1));
    virtdev::vmbus::OpenChannel open = {};
    open.channel_id = id;
    open.open_id = id;
    open.ring_gpadl = channel.gpadl;
    open.target_vp = channel.vp = vp;
    open.downstream_page_offset = static_cast<uint32_t>(pages + 1);
    open_status.reset();
    Say(VmbusMessage(Guest::kOpenChannel, open));
    channel.open = open_status == virtdev::vmbus::kStatusSuccess;
    return channel.open;
  }
  /// Closes and takes the rings back; true if the host gave them back.
  bool Close(Channel& channel) {
    const uint32_t id = channel.offer.channel_id;
    Say(VmbusMessage(Guest::kCloseChannel, virtdev::vmbus::ChannelOnly{id}));
    channel.open = false;
    return TeardownGpadl(id, channel.gpadl);
  }
  /// What the guest does after a rescind.
  void Release(Channel& channel) {
    const uint32_t id = channel.offer.channel_id;
    channels.erase(id);
    Say(VmbusMessage(Guest::kRelIdReleased, virtdev::vmbus::ChannelOnly{id}));
  }

  /// False if the ring is full.
  bool Send(Channel& channel, const FakeVmbusRing::Packet& packet) {
    bool signal = false;
    const bool written = channel.send->Write(packet, &signal);
    if (signal) synic_->Ring(channel.offer.connection_id);
    return written;
  }
  std::vector<FakeVmbusRing::Packet> Receive(Channel& channel) {
    bool signal = false;
    auto packets = channel.receive->ReadAll(&signal);
    if (signal) synic_->Ring(channel.offer.connection_id);
    return packets;
  }
  /// Interrupts that this channel raised so far on a VP.
  int Interrupts(const Channel& channel, uint32_t vp) {
    std::lock_guard lock(synic_->mutex);
    return synic_->events[{vp, 2, static_cast<uint16_t>(channel.offer.channel_id)}];
  }

  uint32_t connection_id = 4;
  std::map<uint32_t, Channel> channels;  ///< by id, from the offer to the release
  std::optional<virtdev::vmbus::VersionResponse> version_response;
  std::optional<uint32_t> gpadl_status, open_status, modify_status, torndown;
  bool all_offers_delivered = false;
  bool unload_complete = false;

 private:
  using Guest = virtdev::vmbus::GuestMessage;
  using Host = virtdev::vmbus::HostMessage;

  std::unique_ptr<FakeVmbusRing> MakeRing(std::span<const uint64_t> pfns) {
    auto mapping = virtdev::vmbus::MapRing(memory_, pfns);
    KVMBUS_ASSERT(mapping.ok());
    auto ring = std::make_unique<FakeVmbusRing>(std::move(mapping).value());
    ring->Initialize();
    return ring;
  }
  bool TakeMessages() {
    std::vector<FakeSynic::Message> messages;
    {
      std::lock_guard lock(synic_->mutex);
      messages.swap(synic_->messages);
    }
    for (const FakeSynic::Message& message : messages) Take(message);
    return !messages.empty();
  }
  template <typename T>
  static T As(const FakeSynic::Message& message) {
    KVMBUS_ASSERT(message.payload.size() == 8 + sizeof(T));
    T value;
    std::memcpy(&value, message.payload.data() + 8, sizeof(T));
    return value;
  }
  void Take(const FakeSynic::Message& message) {
    namespace vb = virtdev::vmbus;
    KVMBUS_ASSERT(message.sint == 2 && message.payload.size() >= 8);
    uint32_t type;
    std::memcpy(&type, message.payload.data(), 4);
    switch (static_cast<Host>(type)) {
      case Host::kVersionResponse:
        version_response = As<vb::VersionResponse>(message);
        return;
      case Host::kOfferChannel: {
        const auto offer = As<vb::OfferChannel>(message);
        KVMBUS_ASSERT(channels.count(offer.channel_id) == 0);
        channels[offer.channel_id].offer = offer;
        return;
      }
      case Host::kRescindChannelOffer:
        channels.at(As<vb::ChannelOnly>(message).channel_id).rescinded = true;
        return;
      case Host::kAllOffersDelivered:
        all_offers_delivered = true;
        return;
      case Host::kOpenResult:
        open_status = As<vb::OpenResult>(message).status;
        return;
      case Host::kGpadlCreated:
        gpadl_status = As<vb::GpadlCreated>(message).status;
        return;
      case Host::kGpadlTorndown:
        torndown = As<vb::GpadlTorndown>(message).gpadl_id;
        return;
      case Host::kUnloadComplete:
        unload_complete = true;
        return;
      case Host::kModifyChannelResponse:
        modify_status = As<vb::ModifyChannelResponse>(message).status;
        return;
      default:
        return;
    }
  }

  FakeSynic* synic_;
  vmm::GuestMemory& memory_;
  vmm::Loop* loop_;
  uint64_t next_page_;
  uint32_t next_gpadl_ = 0xe1e10;
};

}  // namespace kvmbus::tests
