// SPDX-License-Identifier: Apache-2.0
/// \file
/// Clock: the time, behind an interface, so that tests run it by hand.
#pragma once

#include <cstdint>

namespace kvmbus::vmm {

class Clock {
 public:
  virtual ~Clock() = default;
  /// CLOCK_MONOTONIC in nanoseconds.
  virtual uint64_t MonotonicNs() const = 0;
  /// Nanoseconds since 1970-01-01 UTC.
  virtual uint64_t RealtimeNs() const = 0;
};

/// The host's own clock; lives for ever.
const Clock& SystemClock();

}  // namespace kvmbus::vmm
