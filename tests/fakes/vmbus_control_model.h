// SPDX-License-Identifier: Apache-2.0
/// \file
/// Drives a ControlPlane with generated messages and device actions, and checks what comes out
/// against what a guest may rely on. A test feeds it random numbers, a fuzzer its input.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/fakes/vmbus_message.h"
#include "virtdev/vmbus/control_plane.h"

namespace kvmbus::tests {

class VmbusControlModel final : public virtdev::vmbus::Effects {
 public:
  /// Below a bound; 0 for ever when the source is used up.
  using Choose = std::function<uint32_t(uint32_t bound)>;
  static constexpr uint32_t kVps = 4;
  static constexpr uint64_t kRamPages = 4096;

  explicit VmbusControlModel(Choose choose) : choose_(std::move(choose)) { Renew(); }

  /// One message or one action.
  void Step() {
    switch (choose_(24)) {
      case 0:
      case 1:
        if (!control_->connected() || choose_(64) == 1) return Contact();
        return Send(VmbusMessage(Guest::kRequestOffers));
      case 2:
      case 3:
      case 4:
        return StartGpadl();
      case 5:
      case 6:
        return ContinueGpadl();
      case 7:
        return Teardown();
      case 8:
      case 9:
      case 10:
        return Open(ChannelId());
      case 11:
      case 12:
        return Close(ChannelId());
      case 13:
      case 14:
        return ReleaseOne();
      case 15:
        return Modify();
      case 16:
        if (choose_(16) == 1) Unload();
        return;
      case 17:
        return Garbage();
      case 18:
      case 19:
        return AddDevice();
      case 20:
        return RemoveDevice();
      case 21:
        return AddSubChannels();
      case 22:
        return SaveAndRestore();
      case 23:
        if (choose_(16) == 1) Reset();
        return;
      default:
        return;
    }
  }

  /// A well-behaved good-bye: all that was accepted is given back, whatever went before.
  void Finish() {
    const auto opened = opened_;
    for (const uint32_t id : opened) Close(id);
    KVMBUS_ASSERT(opened_.empty());
    const auto live = gpadls_;
    for (const auto& [id, channel] : live) {
      tearing_down_ = channel;
      Send(VmbusMessage(Guest::kGpadlTeardown, virtdev::vmbus::GpadlTeardown{channel, id}));
      KVMBUS_ASSERT(gpadls_.count({id, channel}) == 0);
    }
    Unload();
  }

  const virtdev::vmbus::ControlPlane& control() const { return *control_; }

  /// How often the interesting things happened: a test that sees none of them tests nothing.
  struct Seen {
    uint64_t opens = 0, sub_channels = 0, rescinds = 0, torndown = 0, long_gpadls = 0;
    uint64_t open_when_restored = 0, offered_again = 0;
  };
  const Seen& seen() const { return seen_; }

  // Effects
  void SendMessage(uint32_t vp, std::span<const uint8_t> message) override {
    KVMBUS_ASSERT(vp < kVps && message.size() >= 8);
    uint32_t type;
    std::memcpy(&type, message.data(), 4);
    const auto* rule = virtdev::vmbus::FindRule(virtdev::vmbus::kHostMessageRules, Host(type));
    KVMBUS_ASSERT(rule != nullptr && message.size() == 8 + rule->body_bytes);
    KVMBUS_ASSERT(control_->version() >= rule->min_version);
    last_ = Host(type);
    ++sent_;
    Check(Host(type), message.subspan(8));
  }
  void DiscardMessages() override {}
  vmm::Result<void> OpenChannel(uint32_t channel_id, const virtdev::vmbus::OpenRequest& request,
                                std::span<const uint64_t> ring_pfns) override {
    KVMBUS_ASSERT(opening_ == channel_id && ring_pfns.size() >= 4);
    KVMBUS_ASSERT(gpadls_.count({request.ring_gpadl, channel_id}) == 1);
    for (const uint64_t pfn : ring_pfns) KVMBUS_ASSERT(IsRamPage(pfn));
    if (choose_(8) == 1) return vmm::Error(vmm::Code::kUnavailable, "not now");
    KVMBUS_ASSERT(opened_.insert(channel_id).second);
    ++seen_.opens;
    return {};
  }
  void CloseChannel(uint32_t channel_id) override { KVMBUS_ASSERT(opened_.erase(channel_id) == 1); }
  void RetargetChannel(uint32_t channel_id, uint32_t vp) override {
    KVMBUS_ASSERT(opened_.count(channel_id) == 1 && vp < kVps);
  }
  void OfferGone(uint32_t channel_id) override {
    KVMBUS_ASSERT(opened_.count(channel_id) == 0);
    KVMBUS_ASSERT(disconnecting_ || held_.count(channel_id) == 0);  // the guest let go first
  }
  bool IsRamPage(uint64_t pfn) override { return pfn < kRamPages; }
  void ConnectionChanged() override {}

 private:
  using Guest = virtdev::vmbus::GuestMessage;
  using Host = virtdev::vmbus::HostMessage;
  using GpadlId = std::pair<uint32_t, uint32_t>;  // id, channel

  void Renew() {
    control_ =
        std::make_unique<virtdev::vmbus::ControlPlane>(*this, kVps, virtdev::vmbus::kVersionIron);
  }

  template <typename T>
  static T Body(std::span<const uint8_t> body) {
    T value;
    std::memcpy(&value, body.data(), sizeof(T));
    return value;
  }

  void Check(Host type, std::span<const uint8_t> body) {
    namespace vb = virtdev::vmbus;
    switch (type) {
      case Host::kOfferChannel: {
        const auto offer = Body<vb::OfferChannel>(body);
        KVMBUS_ASSERT(offer.channel_id >= 1 && offer.channel_id <= vb::kMaxChannelId);
        KVMBUS_ASSERT(offer.connection_id > 4 && offer.is_dedicated == 1);
        KVMBUS_ASSERT(held_.emplace(offer.channel_id, false).second);  // no id twice
        seen_.sub_channels += offer.subchannel_index != 0 ? 1 : 0;
        seen_.offered_again += releasing_ ? 1 : 0;
        return;
      }
      case Host::kRescindChannelOffer: {
        const auto held = held_.find(Body<vb::ChannelOnly>(body).channel_id);
        KVMBUS_ASSERT(held != held_.end() && !held->second);
        held->second = true;
        ++seen_.rescinds;
        return;
      }
      case Host::kOpenResult: {
        const auto result = Body<vb::OpenResult>(body);
        KVMBUS_ASSERT(opening_ == result.channel_id && result.open_id == open_id_);
        KVMBUS_ASSERT((result.status == 0) == (opened_.count(result.channel_id) == 1));
        opening_ = 0;
        return;
      }
      case Host::kGpadlCreated: {
        const auto created = Body<vb::GpadlCreated>(body);
        KVMBUS_ASSERT(held_.count(created.channel_id) == 1);
        if (created.status == 0)
          KVMBUS_ASSERT(gpadls_.insert({created.gpadl_id, created.channel_id}).second);
        return;
      }
      case Host::kGpadlTorndown:
        KVMBUS_ASSERT(gpadls_.erase({Body<vb::GpadlTorndown>(body).gpadl_id, tearing_down_}) == 1);
        ++seen_.torndown;
        return;
      default:
        return;
    }
  }

  void Send(const std::vector<uint8_t>& message) {
    control_->HandleMessage(message);
    AfterStep();
  }
  void AfterStep() {
    control_->CheckInvariants();
    for (const auto& [id, rescinded] : held_) {
      const auto state = control_->channel_state(id);
      KVMBUS_ASSERT(state != virtdev::vmbus::ControlPlane::ChannelState::kUnknown);
      using State = virtdev::vmbus::ControlPlane::ChannelState;
      KVMBUS_ASSERT(rescinded == (state == State::kRevoked || state == State::kReoffered));
      KVMBUS_ASSERT((state == State::kOpen) == (opened_.count(id) == 1));
    }
  }

  uint32_t ChannelId() { return 1 + choose_(8); }
  uint32_t NewGpadlId() { return 1 + choose_(24); }

  void Forget() {
    held_.clear();
    gpadls_.clear();
    in_progress_.clear();
  }
  void Contact() {
    namespace vb = virtdev::vmbus;
    vb::InitiateContact contact = {};
    contact.version = choose_(8) == 0 ? choose_(0x70000) : vb::kVersions[choose_(8)];
    contact.target_vp = choose_(6);
    if (contact.version >= vb::kVersionWin10V5 && choose_(8) != 1)
      contact.interrupt_page_or_target = 2;
    if (choose_(16) == 1) contact.parent_to_child_monitor = 0x1000;
    disconnecting_ = true;
    control_->HandleMessage(VmbusMessage(Guest::kInitiateContact, contact));
    disconnecting_ = false;
    KVMBUS_ASSERT(last_ == Host::kVersionResponse && opened_.empty());
    Forget();
    AfterStep();
  }
  void Unload() {
    disconnecting_ = true;
    control_->HandleMessage(VmbusMessage(Guest::kUnload));
    disconnecting_ = false;
    KVMBUS_ASSERT(last_ == Host::kUnloadComplete && opened_.empty());
    Forget();
    AfterStep();
  }
  void Reset() {
    disconnecting_ = true;
    control_->Reset();
    disconnecting_ = false;
    KVMBUS_ASSERT(opened_.empty());
    Forget();
    AfterStep();
  }

  void StartGpadl() {
    const uint32_t pages = choose_(8) == 0 ? choose_(60) : 4 + choose_(8);
    std::vector<uint64_t> words = {uint64_t{pages} * 4096 + (choose_(8) == 1 ? 100 : 0)};
    for (uint32_t i = 0; i < pages; ++i)
      words.push_back(choose_(256) == 1 ? kRamPages + choose_(9) : choose_(kRamPages));
    virtdev::vmbus::GpadlHeader header = {};
    header.channel_id = ChannelId();
    header.gpadl_id = NewGpadlId();
    header.range_count = static_cast<uint16_t>(choose_(16) == 1 ? choose_(4) : 1);
    header.range_bytes =
        static_cast<uint16_t>(choose_(32) == 1 ? choose_(0x10000) : words.size() * 8);
    const size_t now = std::min<size_t>(words.size(), choose_(3) == 0 ? choose_(26) : 26);
    const std::vector<uint64_t> first(words.begin(), words.begin() + static_cast<long>(now));
    in_progress_[header.gpadl_id].assign(words.begin() + static_cast<long>(now), words.end());
    Send(VmbusMessage(Guest::kGpadlHeader, header, first));
  }
  void ContinueGpadl() {
    const uint32_t id =
        in_progress_.empty() || choose_(8) == 1
            ? NewGpadlId()
            : std::next(in_progress_.begin(), choose_(static_cast<uint32_t>(in_progress_.size())))
                  ->first;
    std::vector<uint64_t>& rest = in_progress_[id];
    const size_t now = std::min<size_t>(rest.size(), 28);
    std::vector<uint64_t> part(rest.begin(), rest.begin() + static_cast<long>(now));
    rest.erase(rest.begin(), rest.begin() + static_cast<long>(now));
    if (choose_(4) == 1) part.resize(28, 5);  // as firmware does
    const size_t accepted = gpadls_.size();
    Send(VmbusMessage(Guest::kGpadlBody, virtdev::vmbus::GpadlBody{choose_(4), id}, part));
    seen_.long_gpadls += gpadls_.size() - accepted;
  }
  void Teardown() {
    uint32_t id = NewGpadlId();
    tearing_down_ = ChannelId();
    if (!gpadls_.empty() && choose_(4) != 0)
      std::tie(id, tearing_down_) =
          *std::next(gpadls_.begin(), choose_(static_cast<uint32_t>(gpadls_.size())));
    Send(VmbusMessage(Guest::kGpadlTeardown, virtdev::vmbus::GpadlTeardown{tearing_down_, id}));
  }
  void Open(uint32_t channel) {
    virtdev::vmbus::OpenChannel open = {};
    open.channel_id = channel;
    open.open_id = open_id_ = choose_(1000);
    open.ring_gpadl = NewGpadlId();
    for (const auto& [id, of] : gpadls_) {
      if (of == channel && choose_(8) != 1) open.ring_gpadl = id;
    }
    open.target_vp = choose_(16) == 1 ? virtdev::vmbus::kNoVp : choose_(5);
    open.downstream_page_offset = choose_(4) == 0 ? choose_(20) : 2;
    using State = virtdev::vmbus::ControlPlane::ChannelState;
    const bool answered = control_->channel_state(channel) == State::kOffered;
    opening_ = answered ? channel : 0;
    Send(VmbusMessage(Guest::kOpenChannel, open));
    KVMBUS_ASSERT(opening_ == 0);
  }
  void Close(uint32_t channel) {
    Send(VmbusMessage(Guest::kCloseChannel, virtdev::vmbus::ChannelOnly{channel}));
    KVMBUS_ASSERT(opened_.count(channel) == 0);
  }
  void ReleaseOne() {  // mostly what was rescinded, as guests do
    for (const auto& [id, rescinded] : held_) {
      if (rescinded && choose_(2) == 0) return Release(id);
    }
    if (choose_(8) == 1) Release(ChannelId());
  }
  void Release(uint32_t channel) {
    if (opened_.count(channel) == 0 && held_.erase(channel) == 1)
      std::erase_if(gpadls_, [channel](const GpadlId& id) { return id.second == channel; });
    releasing_ = true;
    Send(VmbusMessage(Guest::kRelIdReleased, virtdev::vmbus::ChannelOnly{channel}));
    releasing_ = false;
  }
  void Modify() {
    const uint64_t before = sent_;
    Send(VmbusMessage(Guest::kModifyChannel,
                      virtdev::vmbus::ModifyChannel{ChannelId(), choose_(6)}));
    KVMBUS_ASSERT(sent_ - before ==
                  (control_->version() >= virtdev::vmbus::kVersionIron ? 1u : 0u));
  }
  void Garbage() {
    std::vector<uint8_t> message(choose_(260));
    for (uint8_t& byte : message) byte = static_cast<uint8_t>(choose_(256));
    // Other steps test well-formed contacts and releases; the model would have to parse these.
    static constexpr uint8_t kHarmless[] = {0,  1,  2,  4,  6,  7,  10, 12,
                                            15, 17, 18, 19, 20, 21, 25, 77};
    const uint32_t type = kHarmless[choose_(sizeof(kHarmless))];
    if (message.size() >= 4) std::memcpy(message.data(), &type, 4);
    Send(message);
  }

  virtdev::ChannelOffer DeviceOffer(uint32_t device) const {
    virtdev::ChannelOffer offer;
    offer.interface_id.bytes[0] = static_cast<uint8_t>(device % 3);
    offer.instance_id.bytes[0] = static_cast<uint8_t>(device + 1);
    return offer;
  }
  void AddDevice() {
    const uint32_t device = choose_(6);
    devices_.insert(device);
    KVMBUS_ASSERT(control_->AddOffer(DeviceOffer(device), 0) != 0);
    AfterStep();
  }
  void RemoveDevice() {
    const uint32_t device = choose_(6);
    if (devices_.erase(device) == 0) return;
    const auto offer = DeviceOffer(device);
    control_->Revoke(control_->FindOffer({offer.interface_id, offer.instance_id, 0}));
    AfterStep();
  }
  void AddSubChannels() {
    const uint32_t device = choose_(6);
    if (devices_.count(device) == 0) return;
    for (uint16_t index = 1; index <= 2; ++index)
      (void)control_->AddOffer(DeviceOffer(device), index);
    AfterStep();
  }
  void SaveAndRestore() {
    state::VmbusControl saved;
    control_->Save(&saved);
    Renew();
    std::vector<virtdev::ChannelOffer> present;
    for (const uint32_t device : devices_) present.push_back(DeviceOffer(device));
    std::vector<virtdev::vmbus::ControlPlane::Reopen> open;
    const uint64_t before = sent_;
    KVMBUS_ASSERT(control_->Restore(saved, present, &open).ok());
    KVMBUS_ASSERT(sent_ == before && open.size() == opened_.size());
    for (const auto& entry : open) KVMBUS_ASSERT(opened_.count(entry.channel_id) == 1);
    seen_.open_when_restored += open.size();
    state::VmbusControl again;
    control_->Save(&again);
    KVMBUS_ASSERT(again.SerializeAsString() == saved.SerializeAsString());
    AfterStep();
  }

  Choose choose_;
  std::unique_ptr<virtdev::vmbus::ControlPlane> control_;
  std::set<uint32_t> devices_;
  // What the guest believes.
  std::map<uint32_t, bool> held_;  // offered channel ids; true once rescinded
  std::set<GpadlId> gpadls_;       // accepted and not given back
  std::map<uint32_t, std::vector<uint64_t>> in_progress_;  // what is still to be sent
  uint32_t opening_ = 0;
  uint32_t open_id_ = 0;
  uint32_t tearing_down_ = 0;
  bool disconnecting_ = false;
  bool releasing_ = false;
  Host last_ = Host::kOfferChannel;
  uint64_t sent_ = 0;
  // What the devices believe.
  std::set<uint32_t> opened_;
  Seen seen_;
};

}  // namespace kvmbus::tests
