// SPDX-License-Identifier: Apache-2.0
#include "virtdev/synthetic/ic/ic_device.h"

#include <algorithm>
#include <cstring>

#include "vmm/os/log.h"

namespace kvmbus::virtdev {

using namespace ic;

namespace {

constexpr Version kFrameworks[] = {{1, 0}, {3, 0}};

template <typename T>
void Append(std::vector<uint8_t>& out, const T& value) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
  out.insert(out.end(), bytes, bytes + sizeof(T));
}

}  // namespace

IcDevice::IcDevice(std::string name, uint16_t type, const vmm::Guid& interface_id,
                   const vmm::Guid& instance_id, std::vector<Version> versions, vmm::Loop& loop)
    : name_(std::move(name)),
      type_(type),
      offer_(MakePipeOffer(interface_id, instance_id, true)),
      versions_(std::move(versions)),
      loop_(loop) {}

IcDevice::~IcDevice() { Detach(); }

vmm::Result<void> IcDevice::Open(uint16_t index, std::unique_ptr<Channel> channel) {
  if (index != 0)
    return vmm::Error(vmm::Code::kInvalidArgument, "an integration service has no sub-channels");
  channel_ = std::move(channel);
  if (running_) Attach();
  return {};
}

void IcDevice::Close(uint16_t index) {
  if (index != 0 || !channel_) return;
  EndSession();
  Detach();
  channel_.reset();
}

void IcDevice::EndSession() {
  version_.reset();
  pending_transaction_.reset();
  negotiation_sent_ = false;
  OnSessionEnd();
}

void IcDevice::Start() {
  running_ = true;
  if (channel_) Attach();
}

void IcDevice::Stop() {
  running_ = false;
  Detach();
}

void IcDevice::Attach() {
  if (attached_) return;
  const auto attached = channel_->Attach(loop_, [this] { OnReady(); });
  if (!attached.ok()) {
    spdlog::error("{}: {}", name_, attached.error().ToString());
    return;
  }
  attached_ = true;
  OnStart();
}

void IcDevice::Detach() {
  if (!attached_) return;
  OnStop();
  channel_->Detach();
  attached_ = false;
}

void IcDevice::Reset() {
  // The bus has closed the channel before.
  next_transaction_ = 1;
  ResetState();
}

void IcDevice::OnReady() {
  if (!negotiation_sent_) negotiation_sent_ = SendNegotiation();  // the host speaks first
  IncomingPacket packet;
  while (attached_ && channel_->Read(&packet) == Channel::ReadStatus::kPacket) {
    if (packet.type == PacketType::kInBand)
      HandlePacket(packet.payload);
    else
      malformed_.Add();
  }
  if (attached_) channel_->Flush();
}

bool IcDevice::SendNegotiation() {
  std::vector<uint8_t> body;
  Append(body, NegotiateHeader{static_cast<uint16_t>(std::size(kFrameworks)),
                               static_cast<uint16_t>(versions_.size()), 0});
  for (const Version& version : kFrameworks) Append(body, version);
  for (const Version& version : versions_) Append(body, version);
  return SendMessage(kTypeNegotiate, {0, 0}, body);
}

bool IcDevice::SendMessage(uint16_t type, Version version, std::span<const uint8_t> body) {
  const size_t bytes = sizeof(PipeHeader) + sizeof(Header) + body.size();
  if (!attached_ || !channel_->ReserveRoom(bytes)) return false;
  Header header = {};
  header.framework_major = type == kTypeNegotiate ? 1 : 3;
  header.type = type;
  header.message_major = version.major;
  header.message_minor = version.minor;
  header.body_bytes = static_cast<uint16_t>(body.size());
  header.transaction_id = next_transaction_++;
  header.flags = kFlagTransaction | kFlagRequest;
  std::vector<uint8_t> packet;
  packet.reserve(bytes);
  Append(packet, PipeHeader{kPipeData, static_cast<uint32_t>(sizeof(Header) + body.size())});
  Append(packet, header);
  packet.insert(packet.end(), body.begin(), body.end());
  if (!channel_->Write(PacketType::kInBand, 0, false, packet)) return false;
  channel_->Flush();
  pending_transaction_ = header.transaction_id;
  return true;
}

bool IcDevice::SendRequest(std::span<const uint8_t> body) {
  if (!version_ || pending_transaction_) return false;
  requests_.Add();
  return SendMessage(type_, *version_, body);
}

void IcDevice::HandlePacket(std::span<const uint8_t> payload) {
  PipeHeader pipe;
  Header header;
  if (payload.size() < sizeof(pipe) + sizeof(header)) return malformed_.Add();
  std::memcpy(&pipe, payload.data(), sizeof(pipe));
  std::memcpy(&header, payload.data() + sizeof(pipe), sizeof(header));
  const auto body = payload.subspan(sizeof(pipe) + sizeof(header));
  if (pipe.type != kPipeData || pipe.bytes > payload.size() - sizeof(pipe) ||
      !(header.flags & kFlagResponse)) {
    malformed_.Add();
    KVMBUS_LOG_LIMITED("{}: the guest sent a malformed message", name_);
    return;
  }
  if (!pending_transaction_ || header.transaction_id != *pending_transaction_) {
    if (header.type == type_) OnLateResponse(body);
    return;
  }
  pending_transaction_.reset();
  if (header.type == kTypeNegotiate)
    HandleNegotiation(body);
  else if (header.type == type_)
    OnResponse(header.status, body);
  else
    malformed_.Add();
}

void IcDevice::HandleNegotiation(std::span<const uint8_t> body) {
  NegotiateHeader header;
  Version chosen[2];  // framework, message
  if (body.size() < sizeof(header) + sizeof(chosen)) return malformed_.Add();
  std::memcpy(&header, body.data(), sizeof(header));
  std::memcpy(chosen, body.data() + sizeof(header), sizeof(chosen));
  const bool known = std::find(versions_.begin(), versions_.end(), chosen[1]) != versions_.end();
  if (header.framework_count != 1 || header.message_count != 1 || !known) {
    KVMBUS_LOG_LIMITED("{}: the guest knows none of the versions offered", name_);
    return;
  }
  version_ = chosen[1];
  OnNegotiated();
}

vmm::Result<std::string> IcDevice::Save() {
  state::IntegrationService state;
  if (version_) {
    state.set_negotiated(true);
    state.set_version_major(version_->major);
    state.set_version_minor(version_->minor);
  }
  state.set_next_transaction(next_transaction_);
  if (pending_transaction_) {
    state.set_transaction_pending(true);
    state.set_transaction(*pending_transaction_);
  }
  state.set_negotiation_sent(negotiation_sent_);
  SaveState(&state);
  return state.SerializeAsString();
}

vmm::Result<void> IcDevice::Restore(
    std::string_view bytes, std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> channels) {
  state::IntegrationService state;
  const vmm::Error damaged =
      vmm::MakeError(vmm::Code::kDataLoss, "saved state of '{}' is not valid", name_);
  if (!state.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())) ||
      state.version_major() > 0xffff || state.version_minor() > 0xffff ||
      state.next_transaction() > 0xff || state.transaction() > 0xff || channels.size() > 1 ||
      (!channels.empty() && channels[0].first != 0))
    return damaged;
  const Version version{static_cast<uint16_t>(state.version_major()),
                        static_cast<uint16_t>(state.version_minor())};
  const bool known = std::find(versions_.begin(), versions_.end(), version) != versions_.end();
  if (state.negotiated() && !known) return damaged;
  // With the channel ends the session: whoever opens it anew is spoken to first.
  const bool in_session =
      state.negotiated() || state.negotiation_sent() || state.transaction_pending();
  if (in_session && channels.empty()) return damaged;
  if (!RestoreState(state)) return damaged;
  version_.reset();
  if (state.negotiated()) version_ = version;
  pending_transaction_.reset();
  if (state.transaction_pending()) pending_transaction_ = static_cast<uint8_t>(state.transaction());
  next_transaction_ = static_cast<uint8_t>(state.next_transaction());
  negotiation_sent_ = state.negotiation_sent();
  channel_ = channels.empty() ? nullptr : std::move(channels[0].second);
  return {};
}

void IcDevice::VisitCounters(const vmm::CounterVisitor& visit) const {
  visit("ic_malformed", malformed_);
  visit("ic_requests", requests_);
}

}  // namespace kvmbus::virtdev
