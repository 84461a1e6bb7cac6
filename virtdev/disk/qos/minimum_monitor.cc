// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/qos/minimum_monitor.h"

#include <algorithm>

#include "vmm/result/result.h"

namespace kvmbus::virtdev {

void MinimumMonitor::SetMinimum(uint64_t minimum_iops, uint64_t now_ns, uint64_t units) {
  minimum_iops_ = minimum_iops;
  sufficient_ = true;
  window_ns_ = busy_since_ns_ = now_ns;
  busy_ns_ = 0;
  window_units_ = units;
}

void MinimumMonitor::Busy(uint64_t now_ns, uint64_t units) {
  Roll(now_ns, units);
  if (busy_queues_++ == 0) busy_since_ns_ = std::max(now_ns, window_ns_);
}

void MinimumMonitor::Idle(uint64_t now_ns, uint64_t units) {
  Roll(now_ns, units);
  KVMBUS_ASSERT(busy_queues_ != 0);
  AccountBusy(now_ns);
  --busy_queues_;
}

void MinimumMonitor::Roll(uint64_t now_ns, uint64_t units) {
  if (minimum_iops_ == 0 || now_ns < window_end_ns()) return;
  const uint64_t end = window_end_ns();
  AccountBusy(end);
  sufficient_ = IsSufficient(busy_ns_, units - window_units_);
  if (!sufficient_) ++insufficient_seconds_;
  // In the whole windows since, if there are any, nothing began and nothing ended.
  const uint64_t whole = (now_ns - end) / kWindowNs;
  if (whole != 0) sufficient_ = busy_queues_ == 0;
  if (!sufficient_) insufficient_seconds_ += whole;
  window_ns_ = end + whole * kWindowNs;
  if (busy_queues_ != 0) busy_since_ns_ = window_ns_;
  busy_ns_ = 0;
  window_units_ = units;
}

/// A disk that is held to exactly its minimum, or whose last request ends after the window, is a
/// little below it now and then: one in twenty is not missed.
bool MinimumMonitor::IsSufficient(uint64_t busy_ns, uint64_t units) const {
  if (busy_ns < kWindowNs / 2) return true;
  const double wanted =
      static_cast<double>(minimum_iops_) * static_cast<double>(busy_ns) / 1e9 * 0.95;
  return static_cast<double>(units) >= wanted;
}

void MinimumMonitor::AccountBusy(uint64_t until_ns) {
  if (busy_queues_ == 0 || until_ns <= busy_since_ns_) return;
  busy_ns_ += until_ns - busy_since_ns_;
  busy_since_ns_ = until_ns;
}

}  // namespace kvmbus::virtdev
