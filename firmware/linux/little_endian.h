// SPDX-License-Identifier: Apache-2.0
/// \file
/// Fields of binary headers: loads and stores at an offset that the caller has checked.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "vmm/result/result.h"

namespace kvmbus::firmware {

/// The host is x86, so that its byte order is the file's.
template <typename T>
T LoadField(std::span<const uint8_t> bytes, size_t offset) {
  static_assert(std::is_integral_v<T>);
  KVMBUS_ASSERT(offset <= bytes.size() && sizeof(T) <= bytes.size() - offset);
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

template <typename T>
void StoreField(std::span<uint8_t> bytes, size_t offset, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  KVMBUS_ASSERT(offset <= bytes.size() && sizeof(T) <= bytes.size() - offset);
  std::memcpy(bytes.data() + offset, &value, sizeof(T));
}

}  // namespace kvmbus::firmware
