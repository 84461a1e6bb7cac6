// SPDX-License-Identifier: Apache-2.0
/// \file
/// A clock that stands still until told.
#pragma once

#include "vmm/os/clock.h"

namespace kvmbus::tests {

class ManualClock final : public vmm::Clock {
 public:
  uint64_t MonotonicNs() const override { return monotonic_ns; }
  uint64_t RealtimeNs() const override { return realtime_ns; }
  void Advance(uint64_t ns) {
    monotonic_ns += ns;
    realtime_ns += ns;
  }
  uint64_t monotonic_ns = 1'000'000'000;
  uint64_t realtime_ns = 1'700'000'000'000'000'000;
};

}  // namespace kvmbus::tests
