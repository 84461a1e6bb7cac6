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

/// Windows' FILETIME: units of 100 ns since 1601-01-01 UTC.
inline constexpr uint64_t kFiletimeOf1970 = 116444736000000000;
inline uint64_t FiletimeOfRealtime(uint64_t realtime_ns) {
  return realtime_ns / 100 + kFiletimeOf1970;
}
/// Nanoseconds since 1970; 0 for what lies before.
inline uint64_t RealtimeOfFiletime(uint64_t filetime) {
  return filetime < kFiletimeOf1970 ? 0 : (filetime - kFiletimeOf1970) * 100;
}

/// The host's own clock; lives for ever.
const Clock& SystemClock();

}  // namespace kvmbus::vmm
