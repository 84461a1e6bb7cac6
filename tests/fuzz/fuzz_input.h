// SPDX-License-Identifier: Apache-2.0
/// \file
/// FuzzInput: the bytes that a fuzz target is given, taken piece by piece.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvmbus::tests {

/// What is missing at the end reads as zeroes.
class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  bool empty() const { return size_ == 0; }
  template <typename T>
  T Take() {
    T value{};
    const size_t count = std::min(size_, sizeof(T));
    if (count != 0) std::memcpy(&value, data_, count);
    Skip(count);
    return value;
  }
  uint8_t Byte() { return Take<uint8_t>(); }
  uint16_t Word() { return static_cast<uint16_t>(Byte() << 8 | Byte()); }
  /// Fewer than `count` at the end.
  std::vector<uint8_t> Bytes(size_t count) {
    std::vector<uint8_t> bytes(data_, data_ + std::min(count, size_));
    Skip(bytes.size());
    return bytes;
  }

 private:
  void Skip(size_t count) {
    data_ += count;
    size_ -= count;
  }

  const uint8_t* data_;
  size_t size_;
};

}  // namespace kvmbus::tests
