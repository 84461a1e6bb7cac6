// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a disk may hold after a power cut, and lives of machines that end in one.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <random>
#include <vector>

#include "tests/fakes/crash_file.h"
#include "virtdev/disk/image.h"

namespace kvmbus::tests {

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
    for (auto& value : values_) value.erase(value.begin(), value.end() - 1);
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

/// One machine's life: up to `steps` steps on its image, and sometimes an orderly end, until the
/// power is cut before event number `cut_at`. Returns what the medium holds then. `open(medium)`
/// gives the image; `step(image)` does something, notes what it writes, and is true if it flushed.
template <typename Open, typename Step>
SparseBytes LiveUntilCut(CrashMedium& medium, std::mt19937_64& random, uint64_t cut_at, int steps,
                         AcceptableContent& content, Open open, Step step) {
  std::optional<SparseBytes> cut;
  medium.on_event = [&] {
    if (!cut && cut_at-- == 0) cut = medium.Crash(random);
  };
  if (const std::unique_ptr<virtdev::Image> image = open(medium)) {
    for (int i = 0; i < steps && !cut; ++i) {
      if (step(*image) && !cut) content.Flushed();
    }
    if (!cut && random() % 4 == 0) {
      EXPECT_TRUE(image->Close().ok());
      if (!cut) content.Flushed();
    }
  }
  medium.on_event = nullptr;
  return cut ? *cut : medium.Crash(random);
}

}  // namespace kvmbus::tests
