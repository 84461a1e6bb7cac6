// SPDX-License-Identifier: Apache-2.0
/// \file
/// ChannelImpl: a Channel on the guest's rings, an eventfd for its signals and SynIC events for
/// ours.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "virtdev/vmbus/channel.h"
#include "virtdev/vmbus/protocol.h"
#include "virtdev/vmbus/ring_unsafe.h"
#include "vmm/hypervisor/synic.h"
#include "vmm/os/fd.h"

namespace kvmbus::virtdev::vmbus {

/// Home: see Channel. Retarget and GpadlRanges may be called from any thread.
class ChannelImpl final : public Channel {
 public:
  struct Params {
    uint32_t channel_id = 0;
    uint32_t target_vp = 0;
    std::span<const uint64_t> ring_pfns;
    uint32_t downstream_page_offset = 0;
    vmm::Counter* broken_rings = nullptr;
    /// Looks up a GPADL of this channel. Any thread.
    std::function<std::vector<GpaRange>(uint32_t gpadl_id)> gpadl_ranges;
    /// Called by the destructor: the server forgets the pointer.
    std::function<void()> on_destroyed;
  };
  static vmm::Result<std::unique_ptr<ChannelImpl>> Create(vmm::GuestMemory& memory,
                                                          vmm::SynicPorts& synic, Params params);
  ~ChannelImpl() override;

  vmm::Result<void> Attach(vmm::Loop& loop, std::function<void()> ready) override;
  void Detach() override;
  ReadStatus Read(IncomingPacket* packet) override;
  bool ReserveRoom(size_t payload_bytes, unsigned packets) override;
  bool Write(PacketType type, uint64_t transaction_id, bool completion_requested,
             std::span<const uint8_t> payload) override;
  void Flush() override;
  bool WriteTransferPages(uint64_t transaction_id, bool completion_requested, uint16_t set_id,
                          std::span<const TransferRange> ranges,
                          std::span<const uint8_t> payload) override;
  vmm::GuestMemory& memory() override { return memory_; }
  std::vector<GpaRange> GpadlRanges(uint32_t gpadl_id) override { return gpadl_ranges_(gpadl_id); }
  uint32_t target_vp() const override { return target_vp_.load(std::memory_order_relaxed); }

  /// When it returns, the old VP gets no interrupt of this channel any more; the new one gets one,
  /// since the last may have been lost on the way.
  void Retarget(uint32_t vp);

 private:
  /// Signals may be lost around an open, a restore or a change of VP; one in each direction mends
  /// that.
  static constexpr uint64_t kUnstickDelayNs = 100'000'000;
  /// How often we look for room in the ring of a guest that does not signal it.
  static constexpr uint64_t kPollDelayNs = 10'000'000;
  /// Packets that one run of `ready` gets.
  static constexpr unsigned kReadBudget = 1024;

  ChannelImpl(vmm::GuestMemory& memory, vmm::SynicPorts& synic, Params params, vmm::PageMapping in,
              vmm::PageMapping out, vmm::Fd doorbell);
  void RunReady();
  void SignalGuest();
  void Unstick();
  void ReportBroken();

  vmm::GuestMemory& memory_;
  vmm::SynicPorts& synic_;
  const uint32_t channel_id_;
  std::mutex target_mutex_;  // held to change target_vp_ and to signal
  std::atomic<uint32_t> target_vp_;
  vmm::Counter* broken_rings_;
  std::function<std::vector<GpaRange>(uint32_t)> gpadl_ranges_;
  std::function<void()> on_destroyed_;
  RingReader reader_;
  RingWriter writer_;
  vmm::Fd doorbell_;

  vmm::Loop* loop_ = nullptr;
  std::shared_ptr<std::function<void()>> ready_;  ///< may be replaced while it runs
  unsigned budget_ = 0;                           ///< packets that this run may still read
  vmm::Loop::TimerId unstick_timer_ = 0;
  vmm::Loop::TimerId poll_timer_ = 0;
  std::shared_ptr<bool> attached_;  ///< what posted tasks look at before they touch this
  bool reported_broken_ = false;
};

}  // namespace kvmbus::virtdev::vmbus
