// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a guest of a fuzz target says to storvsc.
#pragma once

#include <array>

#include "virtdev/synthetic/scsi/storvsc_protocol.h"

namespace kvmbus::virtdev {

/// Of a guest that opens the first channel, in order.
inline std::array<storvsc::Packet, 4> HandshakePackets() {
  using storvsc::Operation;
  std::array<storvsc::Packet, 4> packets{};
  constexpr Operation kOperations[] = {Operation::kBeginInitialization,
                                       Operation::kQueryProtocolVersion,
                                       Operation::kQueryProperties, Operation::kEndInitialization};
  for (size_t i = 0; i < packets.size(); ++i) {
    packets[i].header.operation = static_cast<uint32_t>(kOperations[i]);
    packets[i].version.major_minor = storvsc::kVersionWin10;
  }
  return packets;
}

}  // namespace kvmbus::virtdev
