// SPDX-License-Identifier: Apache-2.0
#include <sys/epoll.h>

#include <cstddef>
#include <cstring>

#include "kvm/hyperv/synic.h"
#include "vmm/os/log.h"

namespace kvmbus::kvm {
namespace {

using vmm::HvStatus;
using vmm::kPageSize;

/// HV_MESSAGE as it stands in a SIMP slot.
struct MessageSlot {
  uint32_t type;
  uint8_t payload_size;
  uint8_t flags;  ///< bit 0: message pending
  uint16_t reserved;
  uint64_t sender;
  uint8_t payload[vmm::kHvMessagePayloadMax];
};
static_assert(sizeof(MessageSlot) == 256);

constexpr uint32_t kMessageTypeVmbus = 1;
constexpr uint8_t kMessagePending = 1;
constexpr uint64_t kOverlayEnable = 1;

/// Input of HvPostMessage.
struct PostMessageInput {
  uint32_t connection_id;
  uint32_t reserved;
  uint32_t message_type;
  uint32_t payload_size;
  uint8_t payload[vmm::kHvMessagePayloadMax];
};
static_assert(sizeof(PostMessageInput) == 256);

constexpr uint16_t kCallPostMessage = 0x5c;
constexpr uint16_t kCallSignalEvent = 0x5d;
constexpr uint64_t kCallFast = 1u << 16;
constexpr uint16_t kStatusInvalidHypercallCode = 2;
constexpr uint16_t kStatusInvalidHypercallInput = 3;
constexpr uint16_t kStatusInvalidAlignment = 4;

}  // namespace

KvmSynic::KvmSynic(const VmFd& vm, vmm::GuestMemory& memory, vmm::Loop& loop, uint32_t vp_count,
                   std::function<void(uint32_t)> poke)
    : vm_(vm), memory_(memory), loop_(loop), poke_(std::move(poke)) {
  for (uint32_t i = 0; i < vp_count; ++i) vps_.push_back(std::make_unique<Vp>());
}

KvmSynic::~KvmSynic() {
  if (acknowledge_.valid()) loop_.Unwatch(acknowledge_.get());
}

vmm::Result<void> KvmSynic::Connect(uint32_t first_gsi) {
  acknowledge_ = TRY(vmm::CreateEventFd());
  TRY_VOID(loop_.Watch(acknowledge_.get(), EPOLLIN, [this](uint32_t) { OnAcknowledge(); }));
  for (size_t i = 0; i < vps_.size(); ++i) {
    Vp& vp = *vps_[i];
    vp.gsi = first_gsi + static_cast<uint32_t>(i);
    vp.interrupt = TRY(vmm::CreateEventFd());
    kvm_irqfd irqfd = {};
    irqfd.fd = static_cast<uint32_t>(vp.interrupt.get());
    irqfd.gsi = vp.gsi;
    TRY_VOID_CTX(vm_.AssignIrqfd(irqfd), "connecting SINT 2 of VP {}", i);
  }
  return {};
}

bool KvmSynic::PostMessage(uint32_t vp_index, uint8_t sint, std::span<const uint8_t> payload) {
  KVMBUS_ASSERT(vp_index < vps_.size() && payload.size() <= vmm::kHvMessagePayloadMax);
  Vp& vp = *vps_[vp_index];
  {
    std::lock_guard lock(vp.mutex);
    if (vp.queue.size() >= kQueueLimit || sint != kVmbusSint) {
      messages_refused_.Add();
      return false;
    }
    Message& message = vp.queue.emplace_back();
    message.sint = sint;
    message.size = static_cast<uint8_t>(payload.size());
    std::copy(payload.begin(), payload.end(), message.payload.begin());
    vp.pending.store(true, std::memory_order_release);
  }
  poke_(vp_index);
  return true;
}

size_t KvmSynic::PendingMessages() const {
  size_t count = 0;
  for (const auto& vp : vps_) {
    std::lock_guard lock(vp->mutex);
    count += vp->queue.size();
  }
  return count;
}

void KvmSynic::DiscardMessages() {
  for (const auto& vp : vps_) {
    std::lock_guard lock(vp->mutex);
    vp->queue.clear();
    vp->pending.store(false, std::memory_order_release);
  }
}

void KvmSynic::Deliver(uint32_t vp_index) {
  Vp& vp = *vps_[vp_index];
  std::lock_guard lock(vp.mutex);
  bool interrupt = false;
  while (!vp.queue.empty() && TryDeliver(vp, vp.queue.front(), vp.queue.size() > 1)) {
    vp.queue.pop_front();
    messages_sent_.Add();
    interrupt = true;
  }
  if (vp.queue.empty()) {
    vp.pending.store(false, std::memory_order_release);
    ArmAcknowledge(vp, false);
  }
  if (interrupt) vmm::SignalEventFd(vp.interrupt.get());
}

bool KvmSynic::TryDeliver(Vp& vp, const Message& message, bool more) {
  if (vp.simp.gpa == 0) return false;  // delivered when the guest enables its page
  const uint64_t gpa = vp.simp.gpa + message.sint * sizeof(MessageSlot);
  uint8_t* bytes = memory_.HostPointer(gpa, sizeof(MessageSlot));
  if (bytes == nullptr) return false;
  // SAFETY: 256 bytes of RAM at a 256-byte boundary; the guest races on them, so type and flags are
  // atomics and nothing is read back.
  auto* slot = reinterpret_cast<MessageSlot*>(bytes);
  std::atomic_ref<uint32_t> type(slot->type);
  std::atomic_ref<uint8_t> flags(slot->flags);
  if (type.load(std::memory_order_acquire) != 0) {
    ArmAcknowledge(vp, true);  // before the guest can see the flag, lest its EOM be missed
    flags.fetch_or(kMessagePending);
    memory_.MarkDirty(gpa, sizeof(MessageSlot));
    if (type.load() != 0) {
      slot_waits_.Add();
      return false;
    }
  }
  if (more) ArmAcknowledge(vp, true);
  slot->payload_size = message.size;
  flags.store(more ? kMessagePending : 0, std::memory_order_relaxed);
  slot->reserved = 0;
  slot->sender = 0;
  std::memcpy(slot->payload, message.payload.data(), message.size);
  type.store(kMessageTypeVmbus, std::memory_order_release);
  memory_.MarkDirty(gpa, sizeof(MessageSlot));
  return true;
}

void KvmSynic::ArmAcknowledge(Vp& vp, bool armed) {
  if (vp.ack_armed == armed) return;
  kvm_irqfd irqfd = {};
  irqfd.fd = static_cast<uint32_t>(vp.interrupt.get());
  irqfd.gsi = vp.gsi;
  irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
  // An eventfd has one irqfd: it is exchanged for one with, or without, a resamplefd.
  const auto removed = vm_.AssignIrqfd(irqfd);
  irqfd.flags = armed ? KVM_IRQFD_FLAG_RESAMPLE : 0;
  irqfd.resamplefd = static_cast<uint32_t>(acknowledge_.get());
  const auto assigned = vm_.AssignIrqfd(irqfd);
  if (!removed.ok() || !assigned.ok())
    spdlog::error("SynIC: exchanging an irqfd: {}",
                  (removed.ok() ? assigned : removed).error().ToString());
  vp.ack_armed = armed;
}

void KvmSynic::OnAcknowledge() {
  vmm::DrainEventFd(acknowledge_.get());
  for (uint32_t i = 0; i < vps_.size(); ++i) {
    if (vps_[i]->pending.load(std::memory_order_acquire)) poke_(i);
  }
}

void KvmSynic::SignalEvent(uint32_t vp_index, uint8_t sint, uint16_t flag) {
  KVMBUS_ASSERT(vp_index < vps_.size() && flag < 2048);
  Vp& vp = *vps_[vp_index];
  std::lock_guard lock(vp.mutex);  // the page must not be taken away meanwhile
  const uint64_t gpa = vp.siefp.gpa + sint * 256u + flag / 32u * 4u;
  uint8_t* bytes = vp.siefp.gpa == 0 || sint != kVmbusSint ? nullptr : memory_.HostPointer(gpa, 4);
  if (bytes == nullptr) {
    events_dropped_.Add();
    return;
  }
  // SAFETY: four aligned bytes of RAM; the guest clears bits atomically.
  const uint32_t bit = 1u << (flag % 32);
  const uint32_t before =
      std::atomic_ref<uint32_t>(*reinterpret_cast<uint32_t*>(bytes)).fetch_or(bit);
  if (before & bit) return;
  memory_.MarkDirty(gpa, 4);
  events_sent_.Add();
  vmm::SignalEventFd(vp.interrupt.get());
}

vmm::Result<void> KvmSynic::BindDoorbell(uint32_t connection_id, int event_fd) {
  return vm_.AssignHypervEventfd(connection_id, event_fd, false);
}

void KvmSynic::UnbindDoorbell(uint32_t connection_id) {
  const auto done = vm_.AssignHypervEventfd(connection_id, -1, true);
  if (!done.ok())
    spdlog::error("SynIC: releasing doorbell {:#x}: {}", connection_id, done.error().ToString());
}

uint64_t KvmSynic::ReferenceTime() const {
  const auto clock = vm_.GetClock();
  return clock.ok() ? clock->clock / 100 : 0;
}

void KvmSynic::OnSynicExit(uint32_t vp_index, const kvm_hyperv_exit& exit) {
  Vp& vp = *vps_[vp_index];
  std::lock_guard lock(vp.mutex);
  MoveOverlay(vp.simp, exit.u.synic.msg_page);
  MoveOverlay(vp.siefp, exit.u.synic.evt_page);
}

void KvmSynic::MoveOverlay(Overlay& overlay, uint64_t control) {
  const uint64_t gpa = control & kOverlayEnable ? control & ~(kPageSize - 1) : 0;
  if (gpa == overlay.gpa) return;
  std::vector<uint8_t> content(kPageSize, 0);
  if (overlay.gpa != 0) {
    // The content belongs to the overlay and moves with it; the RAM beneath comes back.
    if (!memory_.Read(overlay.gpa, content.data(), kPageSize) ||
        !memory_.Write(overlay.gpa, overlay.beneath.data(), kPageSize))
      overlays_refused_.Add();
    overlay = {};
  }
  if (gpa == 0) return;
  std::vector<uint8_t> beneath(kPageSize);
  if (!memory_.Read(gpa, beneath.data(), kPageSize) ||
      !memory_.Write(gpa, content.data(), kPageSize)) {
    overlays_refused_.Add();
    KVMBUS_LOG_LIMITED("the guest put a SynIC page outside RAM, at {:#x}", gpa);
    return;
  }
  overlay.gpa = gpa;
  overlay.beneath = std::move(beneath);
}

uint16_t KvmSynic::OnHypercall(const kvm_hyperv_exit& exit) {
  const uint64_t input = exit.u.hcall.input;
  switch (static_cast<uint16_t>(input)) {
    case kCallPostMessage:
      return input & kCallFast ? kStatusInvalidHypercallInput
                               : PostMessageCall(exit.u.hcall.params[0]);
    case kCallSignalEvent:  // one that no doorbell is bound to
      hypercalls_refused_.Add();
      return static_cast<uint16_t>(HvStatus::kInvalidConnectionId);
    default:
      hypercalls_refused_.Add();
      return kStatusInvalidHypercallCode;
  }
}

uint16_t KvmSynic::PostMessageCall(uint64_t input_gpa) {
  if (input_gpa % 8 != 0 || input_gpa % kPageSize > kPageSize - sizeof(PostMessageInput))
    return kStatusInvalidAlignment;
  const auto input = memory_.ReadObject<PostMessageInput>(input_gpa);
  if (!input || input->payload_size > sizeof(input->payload)) {
    hypercalls_refused_.Add();
    return static_cast<uint16_t>(HvStatus::kInvalidParameter);
  }
  vmm::HvMessageSink* sink = sink_.load();
  if (sink == nullptr) return static_cast<uint16_t>(HvStatus::kInvalidConnectionId);
  return static_cast<uint16_t>(sink->OnGuestMessage(input->connection_id, input->message_type,
                                                    {input->payload, input->payload_size}));
}

void KvmSynic::Reset() {
  for (const auto& vp : vps_) {
    std::lock_guard lock(vp->mutex);
    MoveOverlay(vp->simp, 0);
    MoveOverlay(vp->siefp, 0);
    vp->queue.clear();
    vp->pending.store(false);
    ArmAcknowledge(*vp, false);
  }
}

void KvmSynic::Save(uint32_t vp_index, state::SynicVp* state) const {
  const Vp& vp = *vps_[vp_index];
  std::lock_guard lock(vp.mutex);
  state->set_simp_gpa(vp.simp.gpa);
  state->set_siefp_gpa(vp.siefp.gpa);
  state->set_simp_beneath(std::string(vp.simp.beneath.begin(), vp.simp.beneath.end()));
  state->set_siefp_beneath(std::string(vp.siefp.beneath.begin(), vp.siefp.beneath.end()));
  for (const Message& message : vp.queue) {
    state::SynicMessage* saved = state->add_queued();
    saved->set_sint(message.sint);
    saved->set_payload(
        std::string(message.payload.begin(), message.payload.begin() + message.size));
  }
}

void KvmSynic::Restore(uint32_t vp_index, const state::SynicVp& state) {
  Vp& vp = *vps_[vp_index];
  std::lock_guard lock(vp.mutex);
  // The pages' content is guest RAM and was restored with it: only the book-keeping changes here.
  vp.simp = {state.simp_gpa(), {state.simp_beneath().begin(), state.simp_beneath().end()}};
  vp.siefp = {state.siefp_gpa(), {state.siefp_beneath().begin(), state.siefp_beneath().end()}};
  vp.queue.clear();
  for (const auto& saved : state.queued()) {
    Message& message = vp.queue.emplace_back();
    message.sint = static_cast<uint8_t>(saved.sint());
    message.size = static_cast<uint8_t>(saved.payload().size());
    std::copy(saved.payload().begin(), saved.payload().end(), message.payload.begin());
  }
  vp.pending.store(!vp.queue.empty());
  ArmAcknowledge(vp, false);
}

void KvmSynic::VisitCounters(const vmm::CounterVisitor& visit) const {
  visit("synic_messages_sent", messages_sent_);
  visit("synic_messages_refused", messages_refused_);
  visit("synic_slot_waits", slot_waits_);
  visit("synic_events_sent", events_sent_);
  visit("synic_events_dropped", events_dropped_);
  visit("synic_hypercalls_refused", hypercalls_refused_);
  visit("synic_overlays_refused", overlays_refused_);
}

}  // namespace kvmbus::kvm
