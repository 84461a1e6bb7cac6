// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a disk may hold after a power cut.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvmbus::virtdev::vhdx_test {

/// Of each unit of the disk: what it held at the last flush, or anything since. A unit is written
/// with one value in all of its bytes, and a power cut does not tear it.
class AcceptableContent {
 public:
  /// `first(unit)`: what it holds at the beginning.
  template <typename First>
  AcceptableContent(uint64_t units, uint64_t unit_bytes, First first) : unit_bytes_(unit_bytes) {
    for (uint64_t unit = 0; unit < units; ++unit) values_.push_back({first(unit)});
  }
  uint64_t units() const { return values_.size(); }

  void Wrote(uint64_t unit, uint8_t value) { values_[unit].push_back(value); }
  void WroteRange(uint64_t unit, uint64_t count, uint8_t value) {
    for (uint64_t i = 0; i < count; ++i) Wrote(unit + i, value);
  }
  void Flushed() {
    for (auto& value : values_) {
      if (value.size() > 1) value.erase(value.begin(), value.end() - 1);
    }
  }
  /// This was found: nothing else may come back.
  void Found(const std::vector<uint8_t>& disk) {
    for (uint64_t unit = 0; unit < units(); ++unit) values_[unit] = {disk[unit * unit_bytes_]};
  }
  bool Allows(uint64_t unit, const uint8_t* bytes) const {
    if (std::memcmp(bytes, bytes + 1, unit_bytes_ - 1) != 0) return false;  // torn within a unit
    return std::find(values_[unit].begin(), values_[unit].end(), bytes[0]) != values_[unit].end();
  }

 private:
  const uint64_t unit_bytes_;
  std::vector<std::vector<uint8_t>> values_;
};

}  // namespace kvmbus::virtdev::vhdx_test
