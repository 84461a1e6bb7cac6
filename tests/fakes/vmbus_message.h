// SPDX-License-Identifier: Apache-2.0
/// \file
/// Builds the messages that a guest sends over VMBus.
#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "virtdev/vmbus/protocol.h"

namespace kvmbus::tests {

template <typename T>
std::vector<uint8_t> VmbusMessage(uint32_t type, const T& body,
                                  std::span<const uint64_t> tail = {}) {
  std::vector<uint8_t> message(8 + sizeof(T) + tail.size_bytes());
  std::memcpy(message.data(), &type, 4);
  std::memcpy(message.data() + 8, &body, sizeof(T));
  if (!tail.empty()) std::memcpy(message.data() + 8 + sizeof(T), tail.data(), tail.size_bytes());
  return message;
}
template <typename T>
std::vector<uint8_t> VmbusMessage(virtdev::vmbus::GuestMessage type, const T& body,
                                  std::span<const uint64_t> tail = {}) {
  return VmbusMessage(static_cast<uint32_t>(type), body, tail);
}
inline std::vector<uint8_t> VmbusMessage(virtdev::vmbus::GuestMessage type) {
  std::vector<uint8_t> message(8);
  std::memcpy(message.data(), &type, 4);
  return message;
}

}  // namespace kvmbus::tests
