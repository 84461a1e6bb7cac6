// SPDX-License-Identifier: Apache-2.0
#include "virtdev/synthetic/scsi/scsi_channel.h"

#include <algorithm>
#include <cstring>

#include "vmm/os/log.h"

namespace kvmbus::virtdev {

using storvsc::Operation;

ScsiChannel::ScsiChannel(Shared& shared, uint16_t index, std::unique_ptr<Channel> channel,
                         vmm::Loop& loop, const std::map<uint8_t, Lun>& luns)
    : shared_(shared),
      index_(index),
      channel_(std::move(channel)),
      loop_(loop),
      session_(shared.limits) {
  for (const auto& [number, lun] : luns) InsertUnit(number, lun);
}

ScsiChannel::~ScsiChannel() { KVMBUS_ASSERT(!attached_ && active_.empty()); }

// --- life cycle

vmm::Result<void> ScsiChannel::Attach() {
  if (attached_ || closed_) return {};
  TRY_VOID(channel_->Attach(loop_, [this] { Turn(); }));
  attached_ = true;
  return {};
}

void ScsiChannel::Detach() {
  if (!attached_) return;
  DrainAll();
  SweepRetired();
  PublishTally();
  channel_->Flush();
  channel_->Detach();
  loop_.CancelTimer(turn_timer_);
  turn_timer_ = 0;
  attached_ = false;
}

std::unique_ptr<Channel> ScsiChannel::Shutdown() {
  closed_ = true;  // replies go nowhere from here on
  Detach();
  for (auto& slot : slots_) slot.reset();
  idle_.clear();
  return std::move(channel_);
}

/// A command may go on after one of its disk requests, hence the loop; long ones end early.
void ScsiChannel::DrainAll() {
  while (!active_.empty()) {
    for (const auto& request : active_) request->Interrupt();
    active_.back()->slot->queue->Drain();
  }
}

ScsiChannel::State ScsiChannel::Save() const {
  KVMBUS_ASSERT(!attached_);
  return {session_.state(), announce_pending_, failed_};
}

vmm::Result<void> ScsiChannel::Restore(const State& state) {
  TRY_VOID(session_.Restore(state.session));
  announce_pending_ = state.announce_pending;
  failed_ = state.failed;
  if (index_ == 0) shared_.session_ready.store(session_.ready(), std::memory_order_release);
  return {};
}

// --- the units

void ScsiChannel::InsertUnit(uint8_t number, Lun lun) {
  if (closed_) return;
  KVMBUS_ASSERT(slots_.at(number) == nullptr);
  slots_[number] = std::make_unique<LunSlot>();
  slots_[number]->lun = std::move(lun);
}

void ScsiChannel::RemoveUnit(uint8_t number, std::shared_ptr<void> ticket) {
  if (closed_) return;
  std::unique_ptr<LunSlot> slot = std::move(slots_.at(number));
  KVMBUS_ASSERT(slot != nullptr);
  slot->ticket = std::move(ticket);
  retired_.push_back(std::move(slot));
  SweepRetired();
}

void ScsiChannel::ReplaceMedium(uint8_t number, std::shared_ptr<DiskIo> medium,
                                std::shared_ptr<void> ticket) {
  if (closed_) return;
  Lun lun = slots_.at(number)->lun;
  lun.medium = std::move(medium);
  RemoveUnit(number, std::move(ticket));
  InsertUnit(number, std::move(lun));
}

void ScsiChannel::SweepRetired() {
  std::erase_if(retired_, [](const auto& slot) { return slot->in_flight == 0; });
}

void ScsiChannel::AnnounceLunChange() {
  // A guest that has not finished its handshake scans all units after it.
  if (closed_ || !session_.ready()) return;
  announce_pending_ = true;
  Turn();
}

void ScsiChannel::SendAnnouncement() {
  if (!announce_pending_) return;
  if (session_.state().version < storvsc::kVersionWin7) {
    announce_pending_ = false;  // such guests do not know the message
    return;
  }
  if (!channel_->ReserveRoom(storvsc::kMaxPacketBytes, static_cast<unsigned>(active_.size()) + 1))
    return;
  storvsc::Packet packet{};
  packet.header.operation = static_cast<uint32_t>(Operation::kEnumerateBus);
  const size_t bytes = session_.state().version < storvsc::kVersionWin8
                           ? sizeof(storvsc::PacketHeader) + storvsc::kSrbBytesWin7
                           : storvsc::kMaxPacketBytes;
  announce_pending_ = !channel_->Write(PacketType::kInBand, 0, false,
                                       std::span(reinterpret_cast<const uint8_t*>(&packet), bytes));
}

// --- the ring

/// Room for the reply is there before a request is taken, on top of what is owed already. So no
/// request is ever half done, and a full ring to the guest stops the ring from it.
bool ScsiChannel::CanConsume() {
  if (failed_ || IsFull()) return false;
  if (index_ != 0 && !shared_.session_ready.load(std::memory_order_acquire)) return false;
  return channel_->ReserveRoom(storvsc::kMaxPacketBytes, static_cast<unsigned>(active_.size()) + 1);
}

void ScsiChannel::Turn() {
  if (!attached_ || in_turn_) return;
  in_turn_ = true;
  for (unsigned packets = 0; CanConsume(); ++packets) {
    if (packets == kPacketsPerTurn) {
      ScheduleTurn();
      break;
    }
    if (channel_->Read(&packet_) != Channel::ReadStatus::kPacket) break;
    HandlePacket();
  }
  // The guest does not signal what it adds to packets that were left.
  const bool was_full = IsFull();
  if (!failed_) SendAnnouncement();
  KickQueues();
  channel_->Flush();
  SweepRetired();
  PublishTally();
  in_turn_ = false;
  if (was_full && !IsFull()) ScheduleTurn();
}

/// One turn for all that completes in this round of the loop: a timer that is due costs no system
/// call.
void ScsiChannel::ScheduleTurn() {
  if (turn_timer_ != 0) return;
  turn_timer_ = loop_.AddTimer(0, [this] {
    turn_timer_ = 0;
    Turn();
  });
}

void ScsiChannel::KickQueues() {
  for (LunSlot* slot : to_kick_) {
    slot->to_kick = false;
    slot->queue->Kick();
  }
  to_kick_.clear();
}

void ScsiChannel::PublishTally() {
  ScsiCounters& counters = shared_.counters;
  if (tally_.requests != 0) counters.requests.Add(tally_.requests);
  if (tally_.bytes_read != 0) counters.bytes_read.Add(tally_.bytes_read);
  if (tally_.bytes_written != 0) counters.bytes_written.Add(tally_.bytes_written);
  if (tally_.errors != 0) counters.errors.Add(tally_.errors);
  tally_ = {};
}

void ScsiChannel::ProtocolError(std::string_view what) {
  failed_ = true;
  shared_.counters.protocol_errors.Add();
  KVMBUS_LOG_LIMITED("{}: channel {} stands still until it is opened anew: {}", shared_.name,
                     index_, what);
}

void ScsiChannel::HandlePacket() {
  if (packet_.type == PacketType::kCompletion) {
    shared_.counters.refused_packets.Add();  // we never ask for one
    return;
  }
  if (packet_.type != PacketType::kInBand && packet_.type != PacketType::kGpaDirect)
    return ProtocolError("a packet of a type that no SCSI driver sends");
  if (packet_.payload.size() < sizeof(storvsc::PacketHeader))
    return ProtocolError("a packet shorter than its header");
  if (!packet_.completion_requested) return ProtocolError("a request that wants no completion");
  storvsc::Packet packet{};
  std::memcpy(&packet, packet_.payload.data(), std::min(packet_.payload.size(), sizeof(packet)));
  // Guests judge a reply by its length, which is their request's, not the version's.
  const size_t reply_bytes =
      std::min((packet_.payload.size() + 7) & ~size_t{7}, storvsc::kMaxPacketBytes);
  const bool ready = index_ != 0 || session_.ready();
  if (ready && packet.header.operation == static_cast<uint32_t>(Operation::kExecuteSrb)) {
    HandleSrb(packet, reply_bytes);
  } else {
    HandleControl(packet, reply_bytes);
  }
}

void ScsiChannel::HandleControl(const storvsc::Packet& packet, size_t reply_bytes) {
  const auto operation = static_cast<Operation>(packet.header.operation);
  const bool ready = index_ != 0 || session_.ready();
  const bool is_reset = operation == Operation::kResetLun || operation == Operation::kResetBus ||
                        operation == Operation::kResetAdapter;
  storvsc::Packet reply{};
  StorvscSession::Outcome outcome;
  if (!ready || (!is_reset && index_ == 0)) {
    outcome = session_.Handle(packet, &reply);
  } else if (!is_reset) {
    outcome.status = storvsc::kStatusInvalidDeviceState;  // a sub-channel negotiates nothing
  }  // else a reset: what is under way completes in its own time, which guests accept
  if (outcome.status == storvsc::kStatusInvalidDeviceState) shared_.counters.refused_packets.Add();

  reply.header.operation = static_cast<uint32_t>(Operation::kCompleteIo);
  reply.header.status = outcome.status;
  Send(packet_.transaction_id, reply, reply_bytes);
  if (outcome.became_ready) {
    announce_pending_ = false;
    shared_.session_ready.store(true, std::memory_order_release);
    shared_.on_session_ready();
  }
  if (outcome.sub_channels_created) {
    channel_->Flush();  // the reply first, then the offers
    shared_.on_sub_channels_wanted(session_.state().sub_channels);
  }
}

void ScsiChannel::Send(uint64_t transaction_id, const storvsc::Packet& packet, size_t bytes) {
  if (closed_ || channel_->Write(PacketType::kCompletion, transaction_id, false,
                                 std::span(reinterpret_cast<const uint8_t*>(&packet), bytes)))
    return;
  // There was room when the request was taken: the guest has moved its read index back.
  if (!failed_) ProtocolError("the ring to the guest lost room that it had");
}

}  // namespace kvmbus::virtdev
