// SPDX-License-Identifier: Apache-2.0
#include "virtdev/vmbus/control_plane.h"

#include <algorithm>
#include <cstring>

#include "vmm/os/log.h"

namespace kvmbus::virtdev::vmbus {
namespace {

/// The structure at the start of a body. kGuestMessageRules saw to its size.
template <typename T>
T Parse(std::span<const uint8_t> body) {
  KVMBUS_ASSERT(body.size() >= sizeof(T));
  T value;
  std::memcpy(&value, body.data(), sizeof(T));
  return value;
}

/// From 5.0 on a guest names the SINT and the trust level for its messages; we have one of each.
bool TargetIsOurs(const InitiateContact& contact) {
  if (contact.version < kVersionWin10V5) return true;
  const auto sint = static_cast<uint8_t>(contact.interrupt_page_or_target);
  const auto trust_level = static_cast<uint8_t>(contact.interrupt_page_or_target >> 8);
  return sint == kMessageSint && trust_level == 0;
}

/// Monitor pages are optional and we use none, but one without the other is a mistake.
bool MonitorPagesAreValid(const InitiateContact& contact) {
  return (contact.parent_to_child_monitor == 0) == (contact.child_to_parent_monitor == 0);
}

}  // namespace

ControlPlane::ControlPlane(Effects& effects, uint32_t vp_count, uint32_t max_version)
    : effects_(effects),
      vp_count_(vp_count),
      max_version_(max_version),
      gpadls_([&effects](uint64_t pfn) { return effects.IsRamPage(pfn); }) {}

void ControlPlane::Refuse(vmm::Counter& counter, const char* what) {
  counter.Add();
  KVMBUS_LOG_LIMITED("VMBus: the guest sent {}", what);
}

// --- messages out ---

template <typename T>
void ControlPlane::SendTo(uint32_t vp, HostMessage type, const T& body) {
  uint8_t message[sizeof(Header) + sizeof(T)];
  const Header header{static_cast<uint32_t>(type), 0};
  std::memcpy(message, &header, sizeof(header));
  std::memcpy(message + sizeof(header), &body, sizeof(T));
  effects_.SendMessage(vp, message);
}

template <typename T>
void ControlPlane::Send(HostMessage type, const T& body) {
  SendTo(target_vp_, type, body);
}

void ControlPlane::SendBare(HostMessage type) {
  const Header header{static_cast<uint32_t>(type), 0};
  effects_.SendMessage(target_vp_, {reinterpret_cast<const uint8_t*>(&header), sizeof(header)});
}

void ControlPlane::SendOffer(uint32_t channel_id, const Offer& offer) {
  OfferChannel body = {};
  body.interface_id = offer.offer.interface_id;
  body.instance_id = offer.offer.instance_id;
  body.flags = offer.offer.flags;
  body.mmio_megabytes = offer.offer.mmio_megabytes;
  body.user_defined = offer.offer.user_defined;
  body.subchannel_index = offer.key.subchannel;
  body.channel_id = channel_id;
  body.monitor_id = 0xff;
  body.is_dedicated = 1;
  body.connection_id = SignalConnectionId(channel_id);
  Send(HostMessage::kOfferChannel, body);
}

void ControlPlane::SendGpadlCreated(const GpadlTable::Key& key, uint32_t status) {
  Send(HostMessage::kGpadlCreated, GpadlCreated{key.channel_id, key.gpadl_id, status});
}

// --- the devices' side ---

uint32_t ControlPlane::FindOffer(const OfferKey& key) const {
  for (const auto& [id, offer] : offers_) {
    if (offer.key == key) return id;
  }
  return 0;
}

ControlPlane::ChannelState ControlPlane::channel_state(uint32_t channel_id) const {
  const auto at = offers_.find(channel_id);
  return at == offers_.end() ? ChannelState::kUnknown : at->second.state;
}

void ControlPlane::ForEachOffer(
    const std::function<void(uint32_t channel_id, const OfferKey& key)>& visit) const {
  for (const auto& [id, offer] : offers_) visit(id, offer.key);
}

bool ControlPlane::PrimaryIsOpen(const OfferKey& key) const {
  return channel_state(FindOffer({key.interface_id, key.instance_id, 0})) == ChannelState::kOpen;
}

uint32_t ControlPlane::AddOffer(const ChannelOffer& offer, uint16_t subchannel) {
  const OfferKey key{offer.interface_id, offer.instance_id, subchannel};
  if (const uint32_t known = FindOffer(key); known != 0) {
    Offer& old = offers_[known];
    old.offer = offer;
    // Back before the guest let go: it is offered anew, with the same id, once it has.
    if (old.state == ChannelState::kRevoked && (subchannel == 0 || PrimaryIsOpen(key)))
      old.state = ChannelState::kReoffered;
    return known;
  }
  // A sub-channel belongs to a session of its device, which is over if the guest has just closed.
  if (subchannel != 0 && !PrimaryIsOpen(key)) return 0;
  uint32_t id = 1;
  for (const auto& [taken, unused] : offers_) {
    if (taken != id) break;
    ++id;
  }
  if (id > kMaxChannelId) return 0;
  Offer& added = offers_[id];
  added.key = key;
  added.offer = offer;
  if (connected_ && offers_sent_) {
    added.state = ChannelState::kOffered;
    SendOffer(id, added);
  }
  return id;
}

void ControlPlane::CloseOpen(uint32_t channel_id, Offer& offer) {
  if (offer.state != ChannelState::kOpen) return;
  effects_.CloseChannel(channel_id);
  offer.state = ChannelState::kOffered;
  offer.request = {};
  offer.ring_pages = 0;
}

void ControlPlane::RemoveOffer(Offers::iterator at) {
  const uint32_t id = at->first;
  gpadls_.EraseChannel(id);
  offers_.erase(at);
  effects_.OfferGone(id);
}

void ControlPlane::Revoke(uint32_t channel_id) {
  const auto at = offers_.find(channel_id);
  if (at == offers_.end()) return;
  Offer& offer = at->second;
  if (offer.key.subchannel == 0) RevokeSubChannels(offer.key);
  CloseOpen(channel_id, offer);
  switch (offer.state) {
    case ChannelState::kUnknown:
      return RemoveOffer(at);
    case ChannelState::kReoffered:  // rescinded before it came back
      offer.state = ChannelState::kRevoked;
      return;
    case ChannelState::kRevoked:
      return;
    case ChannelState::kOpen:  // closed above
    case ChannelState::kOffered:
      offer.state = ChannelState::kRevoked;
      Send(HostMessage::kRescindChannelOffer, ChannelOnly{channel_id});
      // GPADLs that the guest is still announcing will never be used.
      for (const GpadlTable::Key& key : gpadls_.EraseInProgress(channel_id))
        SendGpadlCreated(key, kStatusUnsuccessful);
      return;
  }
}

void ControlPlane::RevokeSubChannels(const OfferKey& primary) {
  std::vector<uint32_t> ids;
  for (const auto& [id, offer] : offers_) {
    if (offer.key.subchannel != 0 && offer.key.interface_id == primary.interface_id &&
        offer.key.instance_id == primary.instance_id)
      ids.push_back(id);
  }
  for (const uint32_t id : ids) Revoke(id);
}

// --- messages in ---

void ControlPlane::HandleMessage(std::span<const uint8_t> message) {
  messages_.Add();
  if (message.size() < sizeof(Header) || message.size() > kMaxMessageBytes)
    return Refuse(malformed_, "a message of an impossible size");
  const auto type = static_cast<GuestMessage>(Parse<Header>(message).type);
  const auto body = message.subspan(sizeof(Header));
  const GuestMessageRule* rule = FindRule(kGuestMessageRules, type);
  if (rule == nullptr) return Refuse(malformed_, "a message of an unknown type");
  if (body.size() < rule->body_bytes) return Refuse(malformed_, "a message that is too short");
  if (rule->needs_connection && !connected_)
    return Refuse(out_of_state_, "a message before the connection");
  if (version_ < rule->min_version)
    return Refuse(malformed_, "a message that its protocol version does not have");
  Dispatch(type, body);
}

void ControlPlane::Dispatch(GuestMessage type, std::span<const uint8_t> body) {
  switch (type) {
    case GuestMessage::kInitiateContact:
      return OnInitiateContact(body);
    case GuestMessage::kUnload:
      return OnUnload();
    case GuestMessage::kRequestOffers:
      return OnRequestOffers();
    case GuestMessage::kOpenChannel:
      return OnOpenChannel(body);
    case GuestMessage::kCloseChannel:
      return OnCloseChannel(body);
    case GuestMessage::kGpadlHeader:
      return OnGpadlHeader(body);
    case GuestMessage::kGpadlBody:
      return OnGpadlBody(body);
    case GuestMessage::kGpadlTeardown:
      return OnGpadlTeardown(body);
    case GuestMessage::kRelIdReleased:
      return OnRelIdReleased(body);
    case GuestMessage::kTlConnectRequest:
      return OnTlConnect(body);
    case GuestMessage::kModifyChannel:
      return OnModifyChannel(body);
    case GuestMessage::kOpenReservedChannel:
      return Refuse(out_of_state_, "an open of a reserved channel; there is none");
    case GuestMessage::kCloseReservedChannel:
      return OnCloseReserved(body);
  }
}

void ControlPlane::OnInitiateContact(std::span<const uint8_t> body) {
  const auto contact = Parse<InitiateContact>(body);
  Disconnect();  // whoever speaks anew has forgotten all before: a reset, a crash kernel
  const bool chooses_vp = contact.version >= kVersionWin81;
  target_vp_ = chooses_vp && contact.target_vp < vp_count_ ? contact.target_vp : 0;
  const bool supported =
      std::find(kVersions.begin(), kVersions.end(), contact.version) != kVersions.end() &&
      contact.version <= max_version_ && TargetIsOurs(contact);
  VersionResponse response = {};
  if (supported) {
    response.supported = 1;
    response.state = MonitorPagesAreValid(contact) ? kConnectionOk : kConnectionFailed;
    response.connection_id =
        contact.version >= kVersionWin10V5 ? kMessageConnectionId : contact.version;
    connected_ = response.state == kConnectionOk;
    if (connected_) version_ = contact.version;
  }
  Send(HostMessage::kVersionResponse, response);
  effects_.ConnectionChanged();
}

void ControlPlane::OnRequestOffers() {
  if (offers_sent_) return Refuse(out_of_state_, "a second request for offers");
  offers_sent_ = true;
  // By interface, instance and sub-channel: the same machine is offered in the same order at every
  // boot.
  std::vector<std::pair<OfferKey, uint32_t>> order;
  for (const auto& [id, offer] : offers_) order.emplace_back(offer.key, id);
  std::sort(order.begin(), order.end());
  for (const auto& [key, id] : order) {
    offers_[id].state = ChannelState::kOffered;
    SendOffer(id, offers_[id]);
  }
  SendBare(HostMessage::kAllOffersDelivered);
}

void ControlPlane::OnUnload() {
  Disconnect();
  SendBare(HostMessage::kUnloadComplete);
  effects_.ConnectionChanged();
}

void ControlPlane::CloseAll() {
  // Sub-channels first: closing the primary ends the device's session.
  for (const bool primary : {false, true}) {
    for (auto& [id, offer] : offers_) {
      if ((offer.key.subchannel == 0) == primary) CloseOpen(id, offer);
    }
  }
}

void ControlPlane::Disconnect() {
  CloseAll();
  for (auto at = offers_.begin(); at != offers_.end();) {
    const auto current = at++;
    const bool gone = current->second.state == ChannelState::kRevoked;
    // Sub-channels live for one session of their device.
    if (gone || current->second.key.subchannel != 0)
      RemoveOffer(current);
    else
      current->second.state = ChannelState::kUnknown;
  }
  gpadls_.Clear();
  connected_ = false;
  offers_sent_ = false;
  version_ = 0;
  effects_.DiscardMessages();
}

void ControlPlane::Reset() {
  Disconnect();
  target_vp_ = 0;
  effects_.ConnectionChanged();
}

// --- GPADLs ---

void ControlPlane::OnGpadlHeader(std::span<const uint8_t> body) {
  const auto header = Parse<GpadlHeader>(body);
  if (channel_state(header.channel_id) == ChannelState::kUnknown)
    return Refuse(malformed_, "a GPADL for an unknown channel");
  const GpadlTable::Key key{header.channel_id, header.gpadl_id};
  AnswerGpadl(key, gpadls_.Begin(key, header.range_bytes, header.range_count,
                                 body.subspan(sizeof(header))));
}

void ControlPlane::OnGpadlBody(std::span<const uint8_t> body) {
  const auto header = Parse<GpadlBody>(body);
  const auto key = gpadls_.InProgress(header.gpadl_id);
  if (!key.has_value()) return Refuse(malformed_, "a body of an unknown GPADL");
  AnswerGpadl(*key, gpadls_.Append(*key, body.subspan(sizeof(header))));
}

void ControlPlane::AnswerGpadl(const GpadlTable::Key& key, GpadlTable::Outcome outcome) {
  switch (outcome) {
    case GpadlTable::Outcome::kMoreToCome:
      return;
    case GpadlTable::Outcome::kComplete:
      return SendGpadlCreated(key, kStatusSuccess);
    case GpadlTable::Outcome::kInvalid:
      Refuse(malformed_, "a GPADL that is not valid");
      break;
    case GpadlTable::Outcome::kLimit:
      Refuse(gpadl_limit_hit_, "more GPADLs than are allowed");
      break;
  }
  SendGpadlCreated(key, kStatusUnsuccessful);
}

void ControlPlane::OnGpadlTeardown(std::span<const uint8_t> body) {
  const auto teardown = Parse<GpadlTeardown>(body);
  const GpadlTable::Key key{teardown.channel_id, teardown.gpadl_id};
  if (!gpadls_.IsComplete(key)) return Refuse(malformed_, "a teardown of an unknown GPADL");
  const Offer& offer = offers_.at(key.channel_id);
  if (offer.state == ChannelState::kOpen && offer.request.ring_gpadl == key.gpadl_id)
    return Refuse(out_of_state_, "a teardown of an open channel's ring");
  gpadls_.Erase(key);
  Send(HostMessage::kGpadlTorndown, GpadlTorndown{teardown.gpadl_id});
}

// --- channels ---

bool ControlPlane::RingIsValid(const OpenRequest& request, size_t pages) const {
  // Each ring has a control page and at least one of data.
  return pages >= 4 && pages <= kMaxRingPages && request.downstream_page_offset >= 2 &&
         request.downstream_page_offset <= pages - 2 &&
         (request.target_vp < vp_count_ || request.target_vp == kNoVp);
}

bool ControlPlane::OneMoreRingFits(size_t pages) const {
  size_t open = 0;
  for (const auto& [id, offer] : offers_) {
    open += offer.state == ChannelState::kOpen ? 1 : 0;
    pages += offer.ring_pages;
  }
  return open < kMaxOpenChannels && pages <= kMaxOpenRingPages;
}

uint32_t ControlPlane::TryOpen(uint32_t channel_id, Offer& offer, const OpenRequest& request) {
  const std::vector<uint64_t> pages = gpadls_.RingPages({channel_id, request.ring_gpadl});
  if (!RingIsValid(request, pages.size())) {
    Refuse(opens_refused_, "an open with an unusable ring");
    return kStatusUnsuccessful;
  }
  if (!OneMoreRingFits(pages.size())) {
    Refuse(channel_limit_hit_, "more opens than are allowed");
    return kStatusUnsuccessful;
  }
  const auto opened = effects_.OpenChannel(channel_id, request, pages);
  if (!opened.ok()) {
    opens_refused_.Add();
    KVMBUS_LOG_LIMITED("VMBus: opening channel {}: {}", channel_id, opened.error().ToString());
    return kStatusUnsuccessful;
  }
  offer.state = ChannelState::kOpen;
  offer.request = request;
  offer.ring_pages = pages.size();
  return kStatusSuccess;
}

void ControlPlane::OnOpenChannel(std::span<const uint8_t> body) {
  const auto open = Parse<vmbus::OpenChannel>(body);
  const auto at = offers_.find(open.channel_id);
  if (at == offers_.end()) return Refuse(malformed_, "an open of an unknown channel");
  Offer& offer = at->second;
  if (offer.state == ChannelState::kRevoked || offer.state == ChannelState::kReoffered)
    return;  // the rescind answers it
  if (offer.state != ChannelState::kOffered)
    return Refuse(out_of_state_, "an open of a channel that is open or was given up");
  const uint32_t status =
      TryOpen(open.channel_id, offer,
              {open.open_id, open.ring_gpadl, open.target_vp, open.downstream_page_offset});
  Send(HostMessage::kOpenResult, OpenResult{open.channel_id, open.open_id, status});
}

void ControlPlane::OnCloseChannel(std::span<const uint8_t> body) {
  const auto close = Parse<ChannelOnly>(body);
  const auto at = offers_.find(close.channel_id);
  if (at == offers_.end()) return Refuse(malformed_, "a close of an unknown channel");
  Offer& offer = at->second;
  if (offer.state == ChannelState::kRevoked || offer.state == ChannelState::kReoffered) return;
  if (offer.state != ChannelState::kOpen)
    return Refuse(out_of_state_, "a close of a closed channel");
  if (offer.key.subchannel == 0) RevokeSubChannels(offer.key);  // the device's session is over
  CloseOpen(close.channel_id, offer);
}

void ControlPlane::OnRelIdReleased(std::span<const uint8_t> body) {
  const auto released = Parse<ChannelOnly>(body);
  const auto at = offers_.find(released.channel_id);
  if (at == offers_.end()) return Refuse(malformed_, "a release of an unknown channel");
  Offer& offer = at->second;
  switch (offer.state) {
    case ChannelState::kRevoked:
      return RemoveOffer(at);
    case ChannelState::kReoffered:
      gpadls_.EraseChannel(released.channel_id);
      offer.state = ChannelState::kOffered;
      return SendOffer(released.channel_id, offer);
    case ChannelState::kOffered:  // the guest gives up a device that is still there
      if (offer.key.subchannel != 0) return RemoveOffer(at);  // the device may ask for it again
      gpadls_.EraseChannel(released.channel_id);
      offer.state = ChannelState::kUnknown;
      return;
    case ChannelState::kUnknown:
    case ChannelState::kOpen:
      return Refuse(out_of_state_, "a release of a channel that it does not hold closed");
  }
}

void ControlPlane::OnModifyChannel(std::span<const uint8_t> body) {
  const auto modify = Parse<ModifyChannel>(body);
  const auto at = offers_.find(modify.channel_id);
  const bool valid = at != offers_.end() && at->second.state == ChannelState::kOpen &&
                     modify.target_vp < vp_count_ && at->second.request.target_vp != kNoVp;
  if (valid) {
    at->second.request.target_vp = modify.target_vp;
    effects_.RetargetChannel(modify.channel_id, modify.target_vp);
  } else {
    Refuse(out_of_state_, "a modify of a channel that is not open, or to a VP that is not there");
  }
  if (version_ >= kVersionIron)
    Send(HostMessage::kModifyChannelResponse,
         ModifyChannelResponse{modify.channel_id, valid ? kStatusSuccess : kStatusUnsuccessful});
}

void ControlPlane::OnTlConnect(std::span<const uint8_t> body) {
  const auto request = Parse<TlConnectRequest>(body);
  // Nobody listens on Hyper-V sockets.
  if (version_ >= kVersionWin10Rs3)
    Send(HostMessage::kTlConnectResult,
         TlConnectResult{request.endpoint, request.service, kStatusConnectionRefused});
}

void ControlPlane::OnCloseReserved(std::span<const uint8_t> body) {
  const auto close = Parse<CloseReservedChannel>(body);
  if (close.target_vp >= vp_count_ || close.target_sint != kMessageSint)
    return Refuse(malformed_, "a close of a reserved channel to a SINT that is not there");
  // None is ever open; the guest that makes sure waits for this all the same.
  SendTo(close.target_vp, HostMessage::kCloseReservedResponse, ChannelOnly{close.channel_id});
}

void ControlPlane::VisitCounters(const vmm::CounterVisitor& visit) const {
  visit("vmbus_messages", messages_);
  visit("vmbus_malformed", malformed_);
  visit("vmbus_out_of_state", out_of_state_);
  visit("vmbus_gpadl_limit_hit", gpadl_limit_hit_);
  visit("vmbus_channel_limit_hit", channel_limit_hit_);
  visit("vmbus_opens_refused", opens_refused_);
}

void ControlPlane::CheckInvariants() const {
  gpadls_.CheckInvariants();
  KVMBUS_ASSERT(connected_ || (gpadls_.size() == 0 && !offers_sent_ && version_ == 0));
  size_t open = 0, ring_pages = 0;
  for (const auto& [id, offer] : offers_) {
    KVMBUS_ASSERT(id >= 1 && id <= kMaxChannelId);
    KVMBUS_ASSERT(offers_sent_ || offer.state == ChannelState::kUnknown);
    KVMBUS_ASSERT(offer.key.subchannel == 0 || offer.state == ChannelState::kRevoked ||
                  (offer.state != ChannelState::kUnknown && PrimaryIsOpen(offer.key)));
    const bool is_open = offer.state == ChannelState::kOpen;
    KVMBUS_ASSERT(offer.ring_pages ==
                  (is_open ? gpadls_.RingPages({id, offer.request.ring_gpadl}).size() : 0));
    KVMBUS_ASSERT(is_open == (offer.ring_pages != 0));
    open += is_open ? 1 : 0;
    ring_pages += offer.ring_pages;
  }
  KVMBUS_ASSERT(open <= kMaxOpenChannels && ring_pages <= kMaxOpenRingPages);
}

}  // namespace kvmbus::virtdev::vmbus
