// SPDX-License-Identifier: Apache-2.0
#include "virtdev/vmbus/channel.h"

namespace kvmbus::virtdev {

ChannelOffer MakePipeOffer(const vmm::Guid& interface_id, const vmm::Guid& instance_id,
                           bool enumerate_interface) {
  constexpr uint8_t kMessagePipe = 4;
  ChannelOffer offer;
  offer.interface_id = interface_id;
  offer.instance_id = instance_id;
  offer.flags = static_cast<uint16_t>(kOfferNamedPipeMode |
                                      (enumerate_interface ? kOfferEnumerateDeviceInterface : 0));
  offer.user_defined[0] = kMessagePipe;
  return offer;
}

}  // namespace kvmbus::virtdev
