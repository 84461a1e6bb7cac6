// SPDX-License-Identifier: Apache-2.0
#include "virtdev/vmbus/channel_impl.h"

#include <sys/epoll.h>

#include <cstring>

#include "vmm/os/log.h"

namespace kvmbus::virtdev::vmbus {

vmm::Result<std::unique_ptr<ChannelImpl>> ChannelImpl::Create(vmm::GuestMemory& memory,
                                                              vmm::SynicPorts& synic,
                                                              Params params) {
  const size_t split = params.downstream_page_offset;
  KVMBUS_ASSERT(split < params.ring_pfns.size());
  vmm::PageMapping in =
      TRY_CTX(MapRing(memory, params.ring_pfns.first(split)), "mapping the ring from the guest");
  vmm::PageMapping out =
      TRY_CTX(MapRing(memory, params.ring_pfns.subspan(split)), "mapping the ring to the guest");
  vmm::Fd doorbell = TRY(vmm::CreateEventFd());
  TRY_VOID_CTX(synic.BindDoorbell(SignalConnectionId(params.channel_id), doorbell.get()),
               "binding the doorbell");
  return std::unique_ptr<ChannelImpl>(new ChannelImpl(
      memory, synic, std::move(params), std::move(in), std::move(out), std::move(doorbell)));
}

ChannelImpl::ChannelImpl(vmm::GuestMemory& memory, vmm::SynicPorts& synic, Params params,
                         vmm::PageMapping in, vmm::PageMapping out, vmm::Fd doorbell)
    : memory_(memory),
      synic_(synic),
      channel_id_(params.channel_id),
      target_vp_(params.target_vp),
      broken_rings_(params.broken_rings),
      gpadl_ranges_(std::move(params.gpadl_ranges)),
      on_destroyed_(std::move(params.on_destroyed)),
      reader_(std::move(in), memory),
      writer_(std::move(out)),
      doorbell_(std::move(doorbell)) {}

ChannelImpl::~ChannelImpl() {
  KVMBUS_ASSERT(loop_ == nullptr);  // the device detaches on the channel's own loop first
  synic_.UnbindDoorbell(SignalConnectionId(channel_id_));
  if (on_destroyed_) on_destroyed_();
}

vmm::Result<void> ChannelImpl::Attach(vmm::Loop& loop, std::function<void()> ready) {
  KVMBUS_ASSERT(loop_ == nullptr && loop.IsCurrent());
  TRY_VOID(loop.Watch(doorbell_.get(), EPOLLIN, [this](uint32_t) {
    vmm::DrainEventFd(doorbell_.get());
    RunReady();
  }));
  loop_ = &loop;
  ready_ = std::make_shared<std::function<void()>>(std::move(ready));
  attached_ = std::make_shared<bool>(true);
  budget_ = kReadBudget;
  loop.Post([this, attached = attached_] {
    if (*attached) RunReady();
  });
  unstick_timer_ = loop.AddTimer(kUnstickDelayNs, [this] { Unstick(); });
  return {};
}

void ChannelImpl::Detach() {
  if (loop_ == nullptr) return;
  KVMBUS_ASSERT(loop_->IsCurrent());
  Flush();
  loop_->CancelTimer(unstick_timer_);
  loop_->CancelTimer(poll_timer_);
  poll_timer_ = 0;
  loop_->Unwatch(doorbell_.get());
  *attached_ = false;
  attached_.reset();
  loop_ = nullptr;
}

void ChannelImpl::RunReady() {
  budget_ = kReadBudget;
  const auto ready = ready_;
  (*ready)();
}

void ChannelImpl::Unstick() {
  SignalGuest();
  RunReady();
}

Channel::ReadStatus ChannelImpl::Read(IncomingPacket* packet) {
  if (budget_ == 0) {
    vmm::SignalEventFd(doorbell_.get());  // go on after others had their turn
    return ReadStatus::kEmpty;
  }
  ReadStatus status = reader_.Read(packet);
  if (status == ReadStatus::kEmpty) {
    if (reader_.Commit()) SignalGuest();
    // More may have arrived before the guest saw that we want signals. It is there at once; a guest
    // that takes it back again will have to signal.
    if (!reader_.EnableSignals()) status = reader_.Read(packet);
  }
  if (status == ReadStatus::kPacket) {
    reader_.DisableSignals();  // while we drain, a doorbell is an exit for nothing
    --budget_;
  }
  if (status == ReadStatus::kBroken) ReportBroken();
  return status;
}

void ChannelImpl::ReportBroken() {
  if (reported_broken_) return;
  reported_broken_ = true;
  if (broken_rings_ != nullptr) broken_rings_->Add();
  KVMBUS_LOG_LIMITED(
      "VMBus channel {}: the guest corrupted its ring; the channel stands still until it is "
      "opened anew",
      channel_id_);
}

bool ChannelImpl::ReserveRoom(size_t payload_bytes, unsigned packets) {
  KVMBUS_ASSERT(loop_ != nullptr);
  if (writer_.HasRoom(payload_bytes, packets)) return true;
  if (writer_.Commit()) SignalGuest();
  if (writer_.WaitForRoom(payload_bytes, packets)) return true;
  if (writer_.broken()) ReportBroken();
  if (!reader_.GuestSignalsRoom() && poll_timer_ == 0) {
    poll_timer_ = loop_->AddTimer(kPollDelayNs, [this] {
      poll_timer_ = 0;
      RunReady();
    });
  }
  return false;
}

bool ChannelImpl::Write(PacketType type, uint64_t transaction_id, bool completion_requested,
                        std::span<const uint8_t> payload) {
  return writer_.Write(type, transaction_id, completion_requested, {}, payload);
}

bool ChannelImpl::WriteTransferPages(uint64_t transaction_id, bool completion_requested,
                                     uint16_t set_id, std::span<const TransferRange> ranges,
                                     std::span<const uint8_t> payload) {
  static_assert(sizeof(TransferRange) == 8);
  std::vector<uint8_t> header(8 + ranges.size_bytes());
  const auto count = static_cast<uint32_t>(ranges.size());
  std::memcpy(header.data(), &set_id, sizeof(set_id));  // byte 2: the sender does not own the set
  std::memcpy(header.data() + 4, &count, sizeof(count));
  if (!ranges.empty()) std::memcpy(header.data() + 8, ranges.data(), ranges.size_bytes());
  return writer_.Write(PacketType::kTransferPages, transaction_id, completion_requested, header,
                       payload);
}

void ChannelImpl::Flush() {
  const bool room = reader_.Commit();
  const bool packets = writer_.Commit();
  if (room || packets) SignalGuest();
}

void ChannelImpl::SignalGuest() {
  std::lock_guard lock(target_mutex_);
  const uint32_t vp = target_vp();
  if (vp != kNoVp) synic_.SignalEvent(vp, kMessageSint, static_cast<uint16_t>(channel_id_));
}

void ChannelImpl::Retarget(uint32_t vp) {
  {
    std::lock_guard lock(target_mutex_);
    target_vp_.store(vp, std::memory_order_relaxed);
  }
  SignalGuest();
}

}  // namespace kvmbus::virtdev::vmbus
