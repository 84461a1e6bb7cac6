// SPDX-License-Identifier: Apache-2.0
/// \file
/// DiskQos: a disk's Storage QoS: what it may do, what it should do, what it does.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "virtdev/disk/disk_io.h"
#include "virtdev/disk/qos/minimum_monitor.h"
#include "vmm/os/clock.h"
#include "vmm/os/histogram.h"

namespace kvmbus::virtdev {

class QosQueue;
class RateBucket;

/// A limit of 0 is none. I/O operations are normalised as Hyper-V does it: a request is as many
/// units as it has blocks of 8 KiB, at least one. Requests without data (unmap, zeroes) are one;
/// flushes are none.
struct QosLimits {
  uint64_t min_iops = 0;  ///< reported if it is missed; nothing is reserved for it
  uint64_t max_iops = 0;
  uint64_t max_bytes_per_second = 0;
  bool operator==(const QosLimits&) const = default;
};

/// Whether the disk delivered its minimum in the last second in which it was asked for enough.
enum class MinimumStatus { kNotMonitored, kOk, kInsufficientThroughput };

/// What a disk did since it was opened.
struct DiskStatistics {
  /// Latencies: of each kind of request the time in the host, without the delay that limits added;
  /// kHeld: that delay, of the requests that were held back.
  enum Kind { kRead, kWrite, kFlush, kUnmap, kHeld, kKinds };
  std::array<vmm::HistogramSnapshot, kKinds> latency;
  uint64_t bytes_read = 0, bytes_written = 0;
  uint64_t normalized_ios = 0;  ///< those that succeeded, in units of 8 KiB
  uint64_t errors = 0;
  QosLimits limits;
  MinimumStatus minimum = MinimumStatus::kNotMonitored;
  uint64_t insufficient_seconds = 0;
};

/// One a disk; outlives its queues. Any thread.
class DiskQos {
 public:
  /// The clock is that of the loops on which its queues live.
  explicit DiskQos(const vmm::Clock& clock = vmm::SystemClock());
  ~DiskQos();

  /// Puts the limits before `queue`, also those that are set later. On the queue's home thread.
  std::unique_ptr<DiskQueue> Wrap(std::unique_ptr<DiskQueue> queue, vmm::Loop& loop);
  /// The limits take effect at the next turn of the queues' loops, also for requests that wait.
  /// They start anew: nothing is saved up, nothing owed.
  void SetLimits(const QosLimits& limits);
  QosLimits limits() const;
  DiskStatistics Statistics() const;
  void VisitCounters(const vmm::CounterVisitor& visit) const;

 private:
  friend class QosQueue;

  // Of the queues, on their threads.
  void Leave(QosQueue& queue);
  /// The queue has requests under way, or none any more; then as Roll.
  uint64_t SetBusy(bool busy, uint64_t now_ns);
  /// Returns when the next window ends.
  uint64_t Roll(uint64_t now_ns);

  uint64_t NormalizedIos() const;

  const vmm::Clock& clock_;
  mutable std::mutex mutex_;  // guards all below
  QosLimits limits_;
  std::shared_ptr<RateBucket> bucket_;  ///< null: no maximum
  std::vector<QosQueue*> queues_;
  DiskStatistics gone_;  ///< of the queues that are gone
  mutable MinimumMonitor monitor_;
};

}  // namespace kvmbus::virtdev
