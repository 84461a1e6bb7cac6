// SPDX-License-Identifier: Apache-2.0
/// \file
/// RateBucket: the share of a disk's limits that each request takes, and when it may go therefore.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "virtdev/disk/qos/disk_qos.h"

namespace kvmbus::virtdev {

/// Each limit is a time line on which requests take their places one after the other, as long as
/// the limit says: a request may go once the clock is at its place, less the burst. So what was not
/// used is kept for a burst at most, and requests that go late, for the clock of an event loop is
/// coarse, lose nothing. Any thread, without a lock.
class RateBucket {
 public:
  /// What an idle disk saves up: so much of its limits' time.
  static constexpr uint64_t kBurstNs = 100'000'000;

  /// Nothing is saved up at `now_ns`. At least one of the maxima is there.
  RateBucket(const QosLimits& limits, uint64_t now_ns)
      : requests_(limits.max_iops, now_ns), bytes_(limits.max_bytes_per_second, now_ns) {}

  /// Takes a place for a request of `units` (see QosLimits) and `bytes`. Returns the time at which
  /// the request may go, which may be before `now_ns`.
  uint64_t Reserve(uint64_t now_ns, uint64_t units, uint64_t bytes) {
    const uint64_t start =
        std::max(requests_.Reserve(now_ns * kTicks, units), bytes_.Reserve(now_ns * kTicks, bytes));
    return (start + kTicks - 1) / kTicks - kBurstNs;
  }

 private:
  static constexpr uint64_t kTicks = 16;  ///< a nanosecond: a byte may cost less than one
  /// Of one request: five hours. More would take at once what is left of the clock's range.
  static constexpr double kMaxCost = static_cast<double>(uint64_t{1} << 48);

  class Line {
   public:
    Line(uint64_t per_second, uint64_t now_ns)
        : item_ticks_(per_second == 0 ? 0 : 1e9 * kTicks / static_cast<double>(per_second)),
          end_((now_ns + kBurstNs) * kTicks) {}
    uint64_t Reserve(uint64_t now, uint64_t items) {
      if (item_ticks_ == 0) return kBurstNs * kTicks;
      const auto cost =
          static_cast<uint64_t>(std::min(static_cast<double>(items) * item_ticks_, kMaxCost) + 0.5);
      uint64_t end = end_.load(std::memory_order_relaxed), start;
      do start = std::max(end, now);
      while (!end_.compare_exchange_weak(end, start + cost, std::memory_order_relaxed));
      return start;
    }

   private:
    const double item_ticks_;
    std::atomic<uint64_t> end_;  ///< of what is taken
  };

  Line requests_, bytes_;
};

}  // namespace kvmbus::virtdev
