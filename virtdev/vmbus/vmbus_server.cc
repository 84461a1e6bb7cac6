// SPDX-License-Identifier: Apache-2.0
#include "virtdev/vmbus/vmbus_server.h"

#include <algorithm>

#include "vmm/os/log.h"

namespace kvmbus::virtdev {

using vmm::Code;
using vmm::Error;
using vmm::HvStatus;
using vmm::Result;

namespace {

constexpr uint32_t kVmbusMessageType = 1;
constexpr uint64_t kRetryNs = 5'000'000;
constexpr size_t kStateLimit = 64u << 20;

}  // namespace

/// A device on the bus, and what it may ask for.
class VmbusServer::Slot final : public OfferHandle, public std::enable_shared_from_this<Slot> {
 public:
  Slot(VmbusServer& server, VmbusDevice& device) : server_(server), device_(device) {}
  VmbusDevice& device() { return device_; }
  vmbus::ControlPlane::OfferKey key() const {
    return {device_.offer().interface_id, device_.offer().instance_id, 0};
  }

  void OfferSubChannels(uint16_t count) override {
    wanted_sub_channels_ = count;
    server_.loop_.Post([weak = weak_from_this()] {
      if (const auto slot = weak.lock()) slot->server_.OfferWantedSubChannels(*slot);
    });
  }
  uint16_t TakeWantedSubChannels() { return wanted_sub_channels_.exchange(0); }

 private:
  VmbusServer& server_;
  VmbusDevice& device_;
  std::atomic<uint16_t> wanted_sub_channels_{0};
};

VmbusServer::VmbusServer(vmm::Loop& loop, vmm::GuestMemory& memory, vmm::SynicPorts& synic,
                         Options options)
    : loop_(loop),
      memory_(memory),
      synic_(synic),
      options_(std::move(options)),
      control_(*this, synic.vp_count(), options_.max_version) {
  synic_.SetMessageSink(this);
}

VmbusServer::~VmbusServer() {
  synic_.SetMessageSink(nullptr);
  if (retry_timer_ != 0) loop_.CancelTimer(retry_timer_);
  while (!slots_.empty()) RemoveDevice(slots_.back()->device());
  *alive_ = false;
}

Result<void> VmbusServer::AddDevice(VmbusDevice& device) {
  const std::string_view name = device.device_name();
  const vmbus::ControlPlane::OfferKey key{device.offer().interface_id, device.offer().instance_id,
                                          0};
  if (FindSlot(name) != nullptr || FindSlot(key) != nullptr)
    return vmm::MakeError(Code::kAlreadyExists, "VMBus has a device '{}' or of its GUIDs already",
                          name);
  if (outgoing_.size() >= kOutgoingLimit)
    return vmm::MakeError(Code::kUnavailable,
                          "adding '{}' to VMBus: the guest does not take its messages; try again "
                          "later",
                          name);
  const uint32_t id = control_.AddOffer(device.offer(), 0);
  if (id == 0)
    return vmm::MakeError(Code::kResourceExhausted, "VMBus has no channel left for '{}'", name);
  Slot& slot = *slots_.emplace_back(std::make_shared<Slot>(*this, device));
  channels_[id] = {&slot, 0, nullptr};
  device.OnOffered(&slot);
  if (running_) {
    device.Start();
    (void)FlushOutgoing();
  }
  return {};
}

void VmbusServer::RemoveDevice(VmbusDevice& device) {
  const auto at = std::find_if(slots_.begin(), slots_.end(),
                               [&](const auto& slot) { return &slot->device() == &device; });
  if (at == slots_.end()) return;
  const std::shared_ptr<Slot> slot = *at;
  control_.Revoke(control_.FindOffer(slot->key()));  // and its sub-channels
  std::erase_if(channels_, [&](const auto& entry) { return entry.second.slot == slot.get(); });
  if (running_) (void)FlushOutgoing();
  device.OnRevoked();
  device.Stop();
  slots_.erase(at);
}

VmbusServer::Slot* VmbusServer::FindSlot(std::string_view name) {
  const auto at = std::find_if(slots_.begin(), slots_.end(), [name](const auto& slot) {
    return slot->device().device_name() == name;
  });
  return at == slots_.end() ? nullptr : at->get();
}

VmbusServer::Slot* VmbusServer::FindSlot(const vmbus::ControlPlane::OfferKey& key) {
  const auto at = std::find_if(slots_.begin(), slots_.end(), [&key](const auto& slot) {
    const auto slot_key = slot->key();
    return slot_key.interface_id == key.interface_id && slot_key.instance_id == key.instance_id;
  });
  return at == slots_.end() ? nullptr : at->get();
}

void VmbusServer::OfferWantedSubChannels(Slot& slot) {
  const uint16_t count = slot.TakeWantedSubChannels();
  for (uint16_t index = 1; index <= count; ++index) {
    const uint32_t id = control_.AddOffer(slot.device().offer(), index);
    if (id == 0) break;  // closed meanwhile, or no id is left
    channels_.try_emplace(id, ChannelEntry{&slot, index, nullptr});
    if (index == 0xffff) break;
  }
  if (running_) (void)FlushOutgoing();
}

std::optional<std::string> VmbusServer::NegotiatedVersion() const {
  if (!control_.connected()) return std::nullopt;
  return fmt::format("{}.{}", control_.version() >> 16, control_.version() & 0xffff);
}

// --- messages ---

HvStatus VmbusServer::OnGuestMessage(uint32_t connection_id, uint32_t message_type,
                                     std::span<const uint8_t> payload) {
  if (connection_id != vmbus::kMessageConnectionId &&
      connection_id != vmbus::kMessageConnectionIdV5)
    return HvStatus::kInvalidConnectionId;
  if (message_type != kVmbusMessageType || payload.size() > vmbus::kMaxMessageBytes)
    return HvStatus::kInvalidParameter;
  std::lock_guard lock(incoming_mutex_);
  if (incoming_.size() >= kIncomingLimit) {
    incoming_full_.Add();
    return HvStatus::kInsufficientBuffers;
  }
  incoming_.emplace_back(payload.begin(), payload.end());
  ScheduleProcessing();
  return HvStatus::kSuccess;
}

void VmbusServer::ScheduleProcessing() {
  if (processing_posted_) return;
  processing_posted_ = true;
  loop_.Post([this, alive = alive_] {
    if (*alive) ProcessIncoming();
  });
}

void VmbusServer::ProcessIncoming() {
  {
    std::lock_guard lock(incoming_mutex_);
    processing_posted_ = false;
  }
  // Nothing is taken in while something waits to go out: that bounds what a guest can make us keep.
  for (size_t handled = 0; running_ && FlushOutgoing(); ++handled) {
    std::vector<uint8_t> message;
    {
      std::lock_guard lock(incoming_mutex_);
      if (incoming_.empty()) return;
      // A guest that never stops talking does not keep the main loop to itself.
      if (handled == kIncomingLimit) return ScheduleProcessing();
      message = std::move(incoming_.front());
      incoming_.pop_front();
    }
    control_.HandleMessage(message);
  }
}

bool VmbusServer::FlushOutgoing() {
  while (!outgoing_.empty()) {
    if (!synic_.PostMessage(outgoing_.front().vp, vmbus::kMessageSint, outgoing_.front().message)) {
      outgoing_waits_.Add();
      if (retry_timer_ == 0) {
        retry_timer_ = loop_.AddTimer(kRetryNs, [this] {
          retry_timer_ = 0;
          ProcessIncoming();
        });
      }
      return false;
    }
    outgoing_.pop_front();
  }
  return true;
}

void VmbusServer::SendMessage(uint32_t vp, std::span<const uint8_t> message) {
  outgoing_.push_back({vp, {message.begin(), message.end()}});
}

void VmbusServer::DiscardMessages() {
  outgoing_.clear();
  synic_.DiscardMessages();
}

// --- effects ---

bool VmbusServer::IsRamPage(uint64_t pfn) {
  return pfn < uint64_t{1} << 52 && memory_.Contains(pfn << vmm::kPageShift, vmm::kPageSize);
}

Result<std::unique_ptr<vmbus::ChannelImpl>> VmbusServer::MakeChannel(
    uint32_t channel_id, const vmbus::OpenRequest& request, std::span<const uint64_t> ring_pfns) {
  vmbus::ChannelImpl::Params params;
  params.channel_id = channel_id;
  params.target_vp = request.target_vp;
  params.ring_pfns = ring_pfns;
  params.downstream_page_offset = request.downstream_page_offset;
  params.broken_rings = &broken_rings_;
  params.gpadl_ranges = [this, channel_id, ring = request.ring_gpadl](uint32_t gpadl_id) {
    return gpadl_id == ring ? std::vector<GpaRange>() : control_.GpadlRanges(channel_id, gpadl_id);
  };
  params.on_destroyed = [this, channel_id, alive = alive_] {
    const auto at = *alive ? channels_.find(channel_id) : channels_.end();
    if (*alive && at != channels_.end()) at->second.impl = nullptr;
  };
  auto channel = TRY(vmbus::ChannelImpl::Create(memory_, synic_, std::move(params)));
  channels_[channel_id].impl = channel.get();
  return channel;
}

Result<void> VmbusServer::OpenChannel(uint32_t channel_id, const vmbus::OpenRequest& request,
                                      std::span<const uint64_t> ring_pfns) {
  const auto at = channels_.find(channel_id);
  if (at == channels_.end()) return Error(Code::kNotFound, "its device is gone");
  auto channel = TRY(MakeChannel(channel_id, request, ring_pfns));
  return at->second.slot->device().Open(at->second.index, std::move(channel));
}

void VmbusServer::CloseChannel(uint32_t channel_id) {
  const auto at = channels_.find(channel_id);
  if (at == channels_.end() || at->second.impl == nullptr) return;
  const ChannelEntry entry = at->second;
  entry.slot->device().Close(entry.index);
  if (entry.index == 0) (void)entry.slot->TakeWantedSubChannels();  // of a session that is over
}

void VmbusServer::RetargetChannel(uint32_t channel_id, uint32_t vp) {
  const auto at = channels_.find(channel_id);
  if (at != channels_.end() && at->second.impl != nullptr) at->second.impl->Retarget(vp);
}

void VmbusServer::OfferGone(uint32_t channel_id) { channels_.erase(channel_id); }

void VmbusServer::ConnectionChanged() {
  if (options_.connection_changed) options_.connection_changed();
}

// --- life cycle ---

void VmbusServer::Start() {
  if (running_) return;
  running_ = true;
  for (const auto& slot : slots_) slot->device().Start();
  std::lock_guard lock(incoming_mutex_);
  ScheduleProcessing();
}

void VmbusServer::Stop() {
  if (!running_) return;
  running_ = false;
  if (retry_timer_ != 0) loop_.CancelTimer(retry_timer_);
  retry_timer_ = 0;
  for (auto slot = slots_.rbegin(); slot != slots_.rend(); ++slot) (*slot)->device().Stop();
  // What devices asked for and the loop has not come to yet belongs to the state.
  for (const auto& slot : slots_) OfferWantedSubChannels(*slot);
}

void VmbusServer::Reset() {
  control_.Reset();
  {
    std::lock_guard lock(incoming_mutex_);
    incoming_.clear();
  }
  for (const auto& slot : slots_) slot->device().Reset();
}

Result<std::string> VmbusServer::Save() {
  state::Vmbus state;
  control_.Save(state.mutable_control());
  for (const Outgoing& outgoing : outgoing_) {
    state::VmbusOutgoing* saved = state.add_outgoing();
    saved->set_vp(outgoing.vp);
    saved->set_message(std::string(outgoing.message.begin(), outgoing.message.end()));
  }
  {
    std::lock_guard lock(incoming_mutex_);
    for (const auto& message : incoming_)
      state.add_incoming(std::string(message.begin(), message.end()));
  }
  for (const auto& slot : slots_) {
    const std::string_view name = slot->device().device_name();
    auto device_state = slot->device().Save();
    if (!device_state.ok() && device_state.error().code() == Code::kUnimplemented) continue;
    state::VmbusDeviceState* saved = state.add_devices();
    saved->set_name(std::string(name));
    saved->set_state(TRY_CTX(std::move(device_state), "saving '{}'", name));
  }
  return state.SerializeAsString();
}

Result<void> VmbusServer::Restore(uint32_t, std::string_view bytes) {
  state::Vmbus state;
  if (bytes.size() > kStateLimit ||
      !state.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())) ||
      static_cast<size_t>(state.incoming_size()) > kIncomingLimit ||
      static_cast<size_t>(state.outgoing_size()) > 2 * kOutgoingLimit)
    return Error(Code::kDataLoss, "the saved VMBus state cannot be parsed");
  for (const auto& outgoing : state.outgoing()) {
    if (outgoing.vp() >= synic_.vp_count() || outgoing.message().size() > vmbus::kMaxMessageBytes)
      return Error(Code::kDataLoss, "saved VMBus state: a message is not valid");
  }
  for (const std::string& message : state.incoming()) {
    if (message.size() > vmbus::kMaxMessageBytes)
      return Error(Code::kDataLoss, "saved VMBus state: a guest's message is too long");
  }
  // Devices without saved state are new to the guest, whatever it knew by their GUIDs.
  std::vector<ChannelOffer> present;
  for (const auto& saved : state.devices()) {
    if (Slot* slot = FindSlot(saved.name()); slot != nullptr)
      present.push_back(slot->device().offer());
  }
  std::vector<vmbus::ControlPlane::Reopen> reopen;
  std::deque<Outgoing> before;
  before.swap(outgoing_);
  const Result<void> restored = control_.Restore(state.control(), present, &reopen);
  if (!restored.ok()) {
    outgoing_.swap(before);
    return restored;
  }
  for (const auto& slot : slots_) (void)control_.AddOffer(slot->device().offer(), 0);
  TakeOverMessages(state);
  channels_.clear();
  control_.ForEachOffer([this](uint32_t id, const vmbus::ControlPlane::OfferKey& key) {
    if (Slot* slot = FindSlot(key); slot != nullptr)
      channels_[id] = {slot, key.subchannel, nullptr};
  });
  const Result<void> devices = RestoreDevices(state, reopen);
  if (!devices.ok()) Reset();  // half a restore is of no use to anybody
  ConnectionChanged();
  return devices;
}

void VmbusServer::TakeOverMessages(const state::Vmbus& state) {
  // What the restore itself has to say (rescinds, new offers) comes after what was under way.
  std::deque<Outgoing> later;
  later.swap(outgoing_);
  for (const auto& saved : state.outgoing())
    outgoing_.push_back({saved.vp(), {saved.message().begin(), saved.message().end()}});
  outgoing_.insert(outgoing_.end(), later.begin(), later.end());
  std::lock_guard lock(incoming_mutex_);
  incoming_.clear();
  for (const std::string& message : state.incoming())
    incoming_.emplace_back(message.begin(), message.end());
}

Result<void> VmbusServer::RestoreDevices(const state::Vmbus& state,
                                         const std::vector<vmbus::ControlPlane::Reopen>& reopen) {
  std::map<Slot*, std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>>> open;
  for (const auto& entry : reopen) {
    const ChannelEntry channel = channels_[entry.channel_id];
    KVMBUS_ASSERT(channel.slot != nullptr);  // Restore keeps open what has a device
    open[channel.slot].emplace_back(
        channel.index, TRY(MakeChannel(entry.channel_id, entry.request, entry.ring_pfns)));
  }
  for (const auto& slot : slots_) {
    VmbusDevice& device = slot->device();
    const auto saved =
        std::find_if(state.devices().begin(), state.devices().end(),
                     [&](const auto& entry) { return entry.name() == device.device_name(); });
    if (saved == state.devices().end()) {
      device.Reset();
      continue;
    }
    auto& channels = open[slot.get()];
    std::sort(channels.begin(), channels.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    TRY_VOID_CTX(device.Restore(saved->state(), std::move(channels)), "restoring '{}'",
                 device.device_name());
  }
  return {};
}

void VmbusServer::VisitCounters(const vmm::CounterVisitor& visit) const {
  control_.VisitCounters(visit);
  visit("vmbus_incoming_full", incoming_full_);
  visit("vmbus_outgoing_waits", outgoing_waits_);
  visit("vmbus_broken_rings", broken_rings_);
  for (const auto& slot : slots_) slot->device().VisitCounters(visit);
}

}  // namespace kvmbus::virtdev
