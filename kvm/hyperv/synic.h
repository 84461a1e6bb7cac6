// SPDX-License-Identifier: Apache-2.0
/// \file
/// KvmSynic: messages and event flags into VPs through their SynIC pages, the guest's doorbells
/// out. Reference: TLFS chapter 11; KVM api.rst, KVM_CAP_HYPERV_SYNIC2, KVM_HYPERV_EVENTFD,
/// KVM_IRQFD.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "kvm/uapi/kvm_fds.h"
#include "state/hypervisor.pb.h"
#include "vmm/event/loop.h"
#include "vmm/hypervisor/synic.h"
#include "vmm/memory/guest_memory.h"
#include "vmm/os/counter.h"

namespace kvmbus::kvm {

/// Routes SINT 2, VMBus's, of every VP. Home: the main loop for the acknowledgements; a VP's
/// message slots are written on its own vCPU thread alone, because KVM's timers share them; the
/// event page by any thread under the VP's lock.
class KvmSynic final : public vmm::SynicPorts {
 public:
  static constexpr uint8_t kVmbusSint = 2;
  static constexpr size_t kQueueLimit = 128;  ///< messages a VP

  /// `poke(vp)` makes the vCPU's thread leave guest code and call DeliverPending.
  KvmSynic(const VmFd& vm, vmm::GuestMemory& memory, vmm::Loop& loop, uint32_t vp_count,
           std::function<void(uint32_t)> poke);
  ~KvmSynic() override;

  /// After the GSI routes are set: `first_gsi` + vp is routed to (vp, SINT 2).
  vmm::Result<void> Connect(uint32_t first_gsi);

  // SynicPorts
  uint32_t vp_count() const override { return static_cast<uint32_t>(vps_.size()); }
  bool PostMessage(uint32_t vp, uint8_t sint, std::span<const uint8_t> payload) override;
  size_t PendingMessages() const override;
  void DiscardMessages() override;
  void SignalEvent(uint32_t vp, uint8_t sint, uint16_t flag) override;
  vmm::Result<void> BindDoorbell(uint32_t connection_id, int event_fd) override;
  void UnbindDoorbell(uint32_t connection_id) override;
  void SetMessageSink(vmm::HvMessageSink* sink) override { sink_.store(sink); }
  uint64_t ReferenceTime() const override;

  // From the vCPU's own thread.
  void OnSynicExit(uint32_t vp, const kvm_hyperv_exit& exit);
  /// The guest's hypercall that KVM left to us; returns HV_STATUS.
  uint16_t OnHypercall(const kvm_hyperv_exit& exit);
  void DeliverPending(uint32_t vp) {
    if (vps_[vp]->pending.load(std::memory_order_acquire)) Deliver(vp);
  }

  // While no vCPU runs.
  void Reset();
  void Save(uint32_t vp, state::SynicVp* state) const;
  /// What ReadRecords found sound.
  void Restore(uint32_t vp, const state::SynicVp& state);
  void VisitCounters(const vmm::CounterVisitor& visit) const;

 private:
  /// A page that hides the RAM beneath while it is enabled.
  struct Overlay {
    uint64_t gpa = 0;  ///< 0: not enabled
    std::vector<uint8_t> beneath;
  };
  struct Message {
    uint8_t sint;
    uint8_t size;
    std::array<uint8_t, vmm::kHvMessagePayloadMax> payload;
  };
  struct Vp {
    mutable std::mutex mutex;
    Overlay simp;
    Overlay siefp;
    std::deque<Message> queue;
    std::atomic<bool> pending{false};
    bool ack_armed = false;
    vmm::Fd interrupt;  ///< irqfd of (VP, SINT 2)
    uint32_t gsi = 0;
  };

  void Deliver(uint32_t vp);
  bool TryDeliver(Vp& vp, const Message& message, bool more);
  void ArmAcknowledge(Vp& vp, bool armed);
  void MoveOverlay(Overlay& overlay, uint64_t control);
  void OnAcknowledge();
  uint16_t PostMessageCall(uint64_t input_gpa);

  const VmFd& vm_;
  vmm::GuestMemory& memory_;
  vmm::Loop& loop_;
  std::function<void(uint32_t)> poke_;
  std::atomic<vmm::HvMessageSink*> sink_{nullptr};
  std::vector<std::unique_ptr<Vp>> vps_;
  vmm::Fd acknowledge_;  ///< resamplefd of all SINTs that wait for a free slot

  vmm::Counter messages_sent_;
  vmm::Counter messages_refused_;
  vmm::Counter slot_waits_;
  vmm::Counter events_sent_;
  vmm::Counter events_dropped_;
  vmm::Counter hypercalls_refused_;
  vmm::Counter overlays_refused_;
};

}  // namespace kvmbus::kvm
