// SPDX-License-Identifier: Apache-2.0
/// \file
/// VmbusServer: joins the control plane to the guest's messages, the devices and the rings.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "virtdev/vmbus/channel.h"
#include "virtdev/vmbus/channel_impl.h"
#include "virtdev/vmbus/control_plane.h"
#include "vmm/device/device.h"
#include "vmm/event/loop.h"
#include "vmm/hypervisor/synic.h"

namespace kvmbus::virtdev {

/// Home: the main loop. OnGuestMessage comes from vCPU threads. A device leaves by RemoveDevice, or
/// outlives the server.
class VmbusServer final : public vmm::StateUnit, public vmm::HvMessageSink, private vmbus::Effects {
 public:
  static constexpr size_t kIncomingLimit = 64;
  /// Messages that wait for the guest; beyond it no device is added. What the guest itself can
  /// cause is less: it is not listened to while anything waits.
  static constexpr size_t kOutgoingLimit = 4096;

  struct Options {
    uint32_t max_version = vmbus::kVersionIron;
    std::function<void()> connection_changed;
  };

  VmbusServer(vmm::Loop& loop, vmm::GuestMemory& memory, vmm::SynicPorts& synic, Options options);
  ~VmbusServer() override;

  /// Offers the device; at any time. Errors: kAlreadyExists (its name or its GUIDs),
  /// kResourceExhausted, kUnavailable (the guest does not take its messages).
  vmm::Result<void> AddDevice(VmbusDevice& device);
  /// Rescinds and closes it; when this returns the bus does not know it any more. No-op if it is
  /// not on the bus.
  void RemoveDevice(VmbusDevice& device);

  /// "5.3" while the guest is connected.
  std::optional<std::string> NegotiatedVersion() const;

  vmm::HvStatus OnGuestMessage(uint32_t connection_id, uint32_t message_type,
                               std::span<const uint8_t> payload) override;

  std::string_view unit_name() const override { return "vmbus"; }
  void Start() override;
  void Stop() override;
  void Reset() override;
  vmm::Result<std::string> Save() override;
  vmm::Result<void> Restore(uint32_t schema_version, std::string_view state) override;
  void VisitCounters(const vmm::CounterVisitor& visit) const override;

 private:
  class Slot;
  struct ChannelEntry {
    Slot* slot = nullptr;
    uint16_t index = 0;
    vmbus::ChannelImpl* impl = nullptr;  ///< while open; owned by the device
  };
  struct Outgoing {
    uint32_t vp;
    std::vector<uint8_t> message;
  };

  // vmbus::Effects
  void SendMessage(uint32_t vp, std::span<const uint8_t> message) override;
  void DiscardMessages() override;
  vmm::Result<void> OpenChannel(uint32_t channel_id, const vmbus::OpenRequest& request,
                                std::span<const uint64_t> ring_pfns) override;
  void CloseChannel(uint32_t channel_id) override;
  void RetargetChannel(uint32_t channel_id, uint32_t vp) override;
  void OfferGone(uint32_t channel_id) override;
  bool IsRamPage(uint64_t pfn) override;
  void ConnectionChanged() override;

  void OfferWantedSubChannels(Slot& slot);
  vmm::Result<std::unique_ptr<vmbus::ChannelImpl>> MakeChannel(uint32_t channel_id,
                                                               const vmbus::OpenRequest& request,
                                                               std::span<const uint64_t> ring_pfns);
  void ProcessIncoming();
  bool FlushOutgoing();
  void ScheduleProcessing();
  Slot* FindSlot(std::string_view name);
  Slot* FindSlot(const vmbus::ControlPlane::OfferKey& key);
  void TakeOverMessages(const state::Vmbus& state);
  vmm::Result<void> RestoreDevices(const state::Vmbus& state,
                                   const std::vector<vmbus::ControlPlane::Reopen>& reopen);

  vmm::Loop& loop_;
  vmm::GuestMemory& memory_;
  vmm::SynicPorts& synic_;
  const Options options_;
  vmbus::ControlPlane control_;
  std::vector<std::shared_ptr<Slot>> slots_;   // in the order of addition
  std::map<uint32_t, ChannelEntry> channels_;  // by channel id
  std::deque<Outgoing> outgoing_;
  bool running_ = false;
  vmm::Loop::TimerId retry_timer_ = 0;

  std::mutex incoming_mutex_;  // guards the two below
  std::deque<std::vector<uint8_t>> incoming_;
  bool processing_posted_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);

  vmm::Counter incoming_full_;
  vmm::Counter outgoing_waits_;
  vmm::Counter broken_rings_;
};

}  // namespace kvmbus::virtdev
