// SPDX-License-Identifier: Apache-2.0
// Saving and restoring the control plane.
#include <algorithm>
#include <set>

#include "virtdev/vmbus/control_plane.h"

namespace kvmbus::virtdev::vmbus {
namespace {

using vmm::Code;
using vmm::Result;

vmm::Error Damaged(std::string_view what) {
  return vmm::MakeError(Code::kDataLoss, "saved VMBus state: {}", what);
}

}  // namespace

void ControlPlane::Save(state::VmbusControl* state) const {
  state->set_connected(connected_);
  state->set_offers_sent(offers_sent_);
  state->set_version(version_);
  state->set_target_vp(target_vp_);
  for (const auto& [id, offer] : offers_) {
    state::VmbusOffer* saved = state->add_offers();
    saved->set_interface_id(offer.key.interface_id.ToBytes());
    saved->set_instance_id(offer.key.instance_id.ToBytes());
    saved->set_subchannel(offer.key.subchannel);
    saved->set_channel_id(id);
    saved->set_state(static_cast<uint32_t>(offer.state));
    saved->set_open_id(offer.request.open_id);
    saved->set_ring_gpadl(offer.request.ring_gpadl);
    saved->set_target_vp(offer.request.target_vp);
    saved->set_downstream_page_offset(offer.request.downstream_page_offset);
  }
  gpadls_.Save(state);
}

Result<void> ControlPlane::LoadOffers(const state::VmbusControl& state, const GpadlTable& gpadls,
                                      Offers* offers, std::vector<Reopen>* open) const {
  std::set<OfferKey> keys;
  size_t ring_pages = 0;
  for (const state::VmbusOffer& saved : state.offers()) {
    Offer offer;
    const auto interface_id = vmm::Guid::FromBytes(saved.interface_id());
    const auto instance_id = vmm::Guid::FromBytes(saved.instance_id());
    if (!interface_id || !instance_id || saved.subchannel() > 0xffff || saved.channel_id() < 1 ||
        saved.channel_id() > kMaxChannelId ||
        saved.state() > static_cast<uint32_t>(ChannelState::kReoffered))
      return Damaged("an offer is not valid");
    offer.key = {*interface_id, *instance_id, static_cast<uint16_t>(saved.subchannel())};
    offer.state = static_cast<ChannelState>(saved.state());
    if (offer.state == ChannelState::kUnknown ? offer.key.subchannel != 0 : !state.offers_sent())
      return Damaged("an offer is in an impossible state");
    if (offer.state == ChannelState::kOpen) {
      offer.request = {saved.open_id(), saved.ring_gpadl(), saved.target_vp(),
                       saved.downstream_page_offset()};
      std::vector<uint64_t> pages =
          gpadls.RingPages({saved.channel_id(), offer.request.ring_gpadl});
      if (!RingIsValid(offer.request, pages.size())) return Damaged("an open channel has no ring");
      offer.ring_pages = pages.size();
      ring_pages += pages.size();
      open->push_back({saved.channel_id(), offer.request, std::move(pages)});
    }
    if (!keys.insert(offer.key).second || !offers->emplace(saved.channel_id(), offer).second)
      return Damaged("an offer stands twice");
  }
  for (const auto& [id, offer] : *offers) {
    if (offer.key.subchannel == 0 || offer.state == ChannelState::kRevoked) continue;
    const OfferKey key{offer.key.interface_id, offer.key.instance_id, 0};
    const auto primary = std::find_if(offers->begin(), offers->end(), [&key](const auto& entry) {
      return entry.second.key == key;
    });
    if (primary == offers->end() || primary->second.state != ChannelState::kOpen)
      return Damaged("a sub-channel is without its device's channel");
  }
  for (const state::VmbusGpadl& saved : state.gpadls()) {
    const auto at = offers->find(saved.channel_id());
    if (at == offers->end() || at->second.state == ChannelState::kUnknown)
      return Damaged("a GPADL is of no channel");
  }
  if (open->size() > kMaxOpenChannels || ring_pages > kMaxOpenRingPages)
    return Damaged("more channels are open than are allowed");
  return {};
}

Result<void> ControlPlane::Restore(const state::VmbusControl& state,
                                   std::span<const ChannelOffer> present,
                                   std::vector<Reopen>* open) {
  // Everything is built aside and checked; only then is it taken over.
  const bool known =
      std::find(kVersions.begin(), kVersions.end(), state.version()) != kVersions.end();
  if (state.connected() ? !known : state.version() != 0 || state.offers_sent())
    return Damaged("the connection is not valid");
  if (state.target_vp() >= vp_count_) return Damaged("the connection's processor is not there");
  GpadlTable gpadls([this](uint64_t pfn) { return effects_.IsRamPage(pfn); });
  TRY_VOID(gpadls.Load(state));
  if (!state.connected() && gpadls.size() != 0)
    return Damaged("there are GPADLs without a connection");
  Offers offers;
  std::vector<Reopen> reopen;
  TRY_VOID(LoadOffers(state, gpadls, &offers, &reopen));

  CloseAll();
  offers_ = std::move(offers);
  gpadls_.TakeFrom(gpadls);
  connected_ = state.connected();
  offers_sent_ = state.offers_sent();
  version_ = state.version();
  target_vp_ = state.target_vp();
  MatchDevices(present, &reopen);
  *open = std::move(reopen);
  return {};
}

void ControlPlane::MatchDevices(std::span<const ChannelOffer> present,
                                std::vector<Reopen>* reopen) {
  std::vector<uint32_t> missing;
  for (auto& [id, offer] : offers_) {
    const auto device =
        std::find_if(present.begin(), present.end(), [&key = offer.key](const auto& candidate) {
          return candidate.interface_id == key.interface_id &&
                 candidate.instance_id == key.instance_id;
        });
    if (device != present.end()) {
      offer.offer = *device;
      continue;
    }
    missing.push_back(id);
    if (offer.state == ChannelState::kOpen) {  // nobody is there to be closed
      offer.state = ChannelState::kOffered;
      offer.request = {};
      offer.ring_pages = 0;
    }
  }
  for (const uint32_t id : missing) Revoke(id);
  std::erase_if(*reopen, [this](const Reopen& entry) {
    return channel_state(entry.channel_id) != ChannelState::kOpen;
  });
  // New ones are offered; one that had gone when this was saved, and is back, waits for its
  // release.
  for (const ChannelOffer& offer : present) (void)AddOffer(offer, 0);
}

}  // namespace kvmbus::virtdev::vmbus
