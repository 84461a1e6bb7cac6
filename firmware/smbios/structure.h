// SPDX-License-Identifier: Apache-2.0
/// \file
/// One SMBIOS structure while it is being written: the formatted area, then its strings.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace kvmbus::firmware {

class SmbiosStructure {
 public:
  SmbiosStructure(uint8_t type, uint16_t handle);

  template <typename T>
  SmbiosStructure& Put(std::type_identity_t<T> value) {
    static_assert(std::is_unsigned_v<T>);
    for (size_t i = 0; i < sizeof(T); ++i)
      formatted_.push_back(static_cast<uint8_t>(uint64_t{value} >> (8 * i)));
    return *this;
  }
  SmbiosStructure& PutZeros(size_t count);
  SmbiosStructure& PutBytes(const uint8_t* bytes, size_t count);
  /// A string's number; "" is none, 0. Control characters become '?', what is too long is cut.
  SmbiosStructure& PutString(std::string_view text);

  /// `expected_size` of the formatted area is asserted: the standard gives it.
  void Finish(size_t expected_size, std::vector<uint8_t>* table);

 private:
  std::vector<uint8_t> formatted_;
  std::vector<std::string> strings_;
};

}  // namespace kvmbus::firmware
