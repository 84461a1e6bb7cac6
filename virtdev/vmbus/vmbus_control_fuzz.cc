// SPDX-License-Identifier: Apache-2.0
// The control plane under any mix of guest messages, device actions and restores; the model checks
// what comes out. The second half of the input, if its first byte says so, is a saved state.
#include <cstdint>

#include "tests/fakes/vmbus_control_model.h"
#include "vmm/os/log.h"

namespace {

using kvmbus::tests::VmbusControlModel;

/// Devices that are always ready; a restore from hostile state needs no more.
class QuietEffects final : public kvmbus::virtdev::vmbus::Effects {
 public:
  void SendMessage(uint32_t, std::span<const uint8_t>) override {}
  void DiscardMessages() override {}
  kvmbus::vmm::Result<void> OpenChannel(uint32_t, const kvmbus::virtdev::vmbus::OpenRequest&,
                                        std::span<const uint64_t>) override {
    return {};
  }
  void CloseChannel(uint32_t) override {}
  void RetargetChannel(uint32_t, uint32_t) override {}
  void OfferGone(uint32_t) override {}
  bool IsRamPage(uint64_t pfn) override { return pfn < 4096; }
  void ConnectionChanged() override {}
};

void RestoreHostileState(const uint8_t* data, size_t size) {
  kvmbus::state::VmbusControl state;
  if (!state.ParseFromArray(data, static_cast<int>(size))) return;
  QuietEffects effects;
  kvmbus::virtdev::vmbus::ControlPlane control(effects, 4, kvmbus::virtdev::vmbus::kVersionIron);
  std::vector<kvmbus::virtdev::vmbus::ControlPlane::Reopen> open;
  const kvmbus::virtdev::ChannelOffer present[] = {{}};
  const bool restored = control.Restore(state, present, &open).ok();
  control.CheckInvariants();
  if (!restored) return;
  kvmbus::state::VmbusControl again;
  control.Save(&again);
  control.Reset();
  KVMBUS_ASSERT(control.Restore(again, present, &open).ok());
  control.CheckInvariants();
}

/// Messages as they come, no model in between.
void SendRawMessages(const uint8_t* data, size_t size) {
  QuietEffects effects;
  kvmbus::virtdev::vmbus::ControlPlane control(effects, 4, kvmbus::virtdev::vmbus::kVersionIron);
  for (uint8_t i = 0; i < 3; ++i) {
    kvmbus::virtdev::ChannelOffer offer;
    offer.instance_id.bytes[0] = i;
    control.AddOffer(offer, 0);
  }
  while (size > 1) {
    const size_t length = std::min<size_t>(data[0], size - 1);
    control.HandleMessage({data + 1, length});
    control.CheckInvariants();
    data += 1 + length;
    size -= 1 + length;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  spdlog::set_level(spdlog::level::off);
  if (size == 0) return 0;
  const uint8_t mode = *data++;
  --size;
  if (mode == 1) {
    RestoreHostileState(data, size);
  } else if (mode == 2) {
    SendRawMessages(data, size);
  } else {
    VmbusControlModel model([&](uint32_t bound) {
      uint32_t value = 0;
      for (uint32_t limit = 1; limit < bound && size != 0; limit <<= 8) {
        value = value << 8 | *data++;
        --size;
        if (limit >= 1u << 16) break;
      }
      return value % bound;
    });
    while (size != 0) model.Step();
    model.Finish();
  }
  return 0;
}
