// SPDX-License-Identifier: Apache-2.0
/// \file
/// ControlPlane: VMBus's connection, offers, channels and GPADLs as a state machine without I/O:
/// the guest's messages and the devices' actions in, messages and effects out.
///
/// Connection: Disconnected -> Connected (InitiateContact) -> Disconnected (Unload, reset, a new
/// contact). Channel: Unknown (not offered yet) -> Offered -> Open -> Offered; a device that leaves
/// makes it Revoked until the guest releases its id, and Reoffered if the device comes back before
/// that. Opening and closing a device is synchronous (VmbusDevice), so that no state stands for
/// "under way".
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "state/vmbus.pb.h"
#include "virtdev/vmbus/channel.h"
#include "virtdev/vmbus/gpadl_table.h"
#include "virtdev/vmbus/protocol.h"

namespace kvmbus::virtdev::vmbus {

/// What the guest asked for when it opened a channel.
struct OpenRequest {
  uint32_t open_id = 0;
  uint32_t ring_gpadl = 0;
  uint32_t target_vp = 0;
  uint32_t downstream_page_offset = 0;
};

/// What the state machine wants done. Calls come from inside HandleMessage, AddOffer, Revoke, Reset
/// and Restore.
class Effects {
 public:
  virtual ~Effects() = default;
  /// To be posted to (vp, SINT 2) in order.
  virtual void SendMessage(uint32_t vp, std::span<const uint8_t> message) = 0;
  /// The connection that messages were queued for is gone.
  virtual void DiscardMessages() = 0;
  /// Open the device's channel over these ring pages; an error refuses the guest's open.
  virtual vmm::Result<void> OpenChannel(uint32_t channel_id, const OpenRequest& request,
                                        std::span<const uint64_t> ring_pfns) = 0;
  /// When it returns, the device does not touch the rings any more.
  virtual void CloseChannel(uint32_t channel_id) = 0;
  virtual void RetargetChannel(uint32_t channel_id, uint32_t vp) = 0;
  /// The offer is gone for good and its id free.
  virtual void OfferGone(uint32_t channel_id) = 0;
  virtual bool IsRamPage(uint64_t pfn) = 0;
  virtual void ConnectionChanged() = 0;
};

class ControlPlane {
 public:
  static constexpr size_t kMaxOpenChannels = 256;
  static constexpr size_t kMaxRingPages = 2048;  ///< of one channel, both directions
  /// Of all open channels. Scattered ring pages cost two mappings each, and the kernel allows a
  /// process 65530.
  static constexpr size_t kMaxOpenRingPages = 24576;

  enum class ChannelState { kUnknown, kOffered, kOpen, kRevoked, kReoffered };

  struct OfferKey {
    vmm::Guid interface_id;
    vmm::Guid instance_id;
    uint16_t subchannel = 0;
    auto operator<=>(const OfferKey&) const = default;
  };

  ControlPlane(Effects& effects, uint32_t vp_count, uint32_t max_version);

  /// Adds a (sub-)channel; the guest hears of it at once if it has asked for offers. One that was
  /// revoked and that the guest still holds comes back with its id. 0 if all ids are taken.
  uint32_t AddOffer(const ChannelOffer& offer, uint16_t subchannel);
  /// The device leaves; closes, rescinds. A primary takes its sub-channels along.
  void Revoke(uint32_t channel_id);

  void HandleMessage(std::span<const uint8_t> message);

  /// Machine reset: everything that the guest set up is gone, offers stay; sub-channels go.
  void Reset();

  bool connected() const { return connected_; }
  uint32_t version() const { return version_; }
  /// 0 if there is none.
  uint32_t FindOffer(const OfferKey& key) const;
  /// kUnknown too if there is no such channel.
  ChannelState channel_state(uint32_t channel_id) const;
  void ForEachOffer(
      const std::function<void(uint32_t channel_id, const OfferKey& key)>& visit) const;
  /// The guest's page list of this channel; empty if there is none. Any thread.
  std::vector<GpaRange> GpadlRanges(uint32_t channel_id, uint32_t gpadl_id) const {
    return gpadls_.Ranges({channel_id, gpadl_id});
  }

  void Save(state::VmbusControl* state) const;
  /// Takes over a saved connection; checks all of it before anything changes. Channels that are
  /// open now are closed, without a word to the guest. `present` are the devices that are here:
  /// saved channels of others are rescinded, those of them that were not saved are offered. `open`
  /// gets what was open when saved, for the caller to open again without a word to the guest.
  struct Reopen {
    uint32_t channel_id;
    OpenRequest request;
    std::vector<uint64_t> ring_pfns;
  };
  vmm::Result<void> Restore(const state::VmbusControl& state, std::span<const ChannelOffer> present,
                            std::vector<Reopen>* open);

  void VisitCounters(const vmm::CounterVisitor& visit) const;

  /// For tests: what must hold between calls.
  void CheckInvariants() const;

 private:
  struct Offer {
    OfferKey key;
    ChannelOffer offer;
    ChannelState state = ChannelState::kUnknown;
    OpenRequest request;    ///< while open
    size_t ring_pages = 0;  ///< while open
  };
  using Offers = std::map<uint32_t, Offer>;  // by channel id

  template <typename T>
  void SendTo(uint32_t vp, HostMessage type, const T& body);
  template <typename T>
  void Send(HostMessage type, const T& body);
  void SendBare(HostMessage type);
  void SendOffer(uint32_t channel_id, const Offer& offer);
  void SendGpadlCreated(const GpadlTable::Key& key, uint32_t status);

  void Dispatch(GuestMessage type, std::span<const uint8_t> body);
  void OnInitiateContact(std::span<const uint8_t> body);
  void OnRequestOffers();
  void OnUnload();
  void OnGpadlHeader(std::span<const uint8_t> body);
  void OnGpadlBody(std::span<const uint8_t> body);
  void AnswerGpadl(const GpadlTable::Key& key, GpadlTable::Outcome outcome);
  void OnGpadlTeardown(std::span<const uint8_t> body);
  void OnOpenChannel(std::span<const uint8_t> body);
  void OnCloseChannel(std::span<const uint8_t> body);
  void OnRelIdReleased(std::span<const uint8_t> body);
  void OnModifyChannel(std::span<const uint8_t> body);
  void OnTlConnect(std::span<const uint8_t> body);
  void OnCloseReserved(std::span<const uint8_t> body);

  void Disconnect();
  void CloseAll();
  void CloseOpen(uint32_t channel_id, Offer& offer);
  void RemoveOffer(Offers::iterator at);
  void RevokeSubChannels(const OfferKey& primary);
  uint32_t TryOpen(uint32_t channel_id, Offer& offer, const OpenRequest& request);
  bool PrimaryIsOpen(const OfferKey& key) const;
  bool RingIsValid(const OpenRequest& request, size_t pages) const;
  bool OneMoreRingFits(size_t pages) const;
  vmm::Result<void> LoadOffers(const state::VmbusControl& state, const GpadlTable& gpadls,
                               Offers* offers, std::vector<Reopen>* open) const;
  void MatchDevices(std::span<const ChannelOffer> present, std::vector<Reopen>* reopen);
  void Refuse(vmm::Counter& counter, const char* what);

  Effects& effects_;
  const uint32_t vp_count_;
  const uint32_t max_version_;

  bool connected_ = false;
  bool offers_sent_ = false;
  uint32_t version_ = 0;
  uint32_t target_vp_ = 0;
  Offers offers_;
  GpadlTable gpadls_;

  vmm::Counter messages_;
  vmm::Counter malformed_;
  vmm::Counter out_of_state_;
  vmm::Counter gpadl_limit_hit_;
  vmm::Counter channel_limit_hit_;
  vmm::Counter opens_refused_;
};

}  // namespace kvmbus::virtdev::vmbus
