// SPDX-License-Identifier: Apache-2.0
/// \file
/// MinimumMonitor: whether a disk delivers the minimum that it is to have.
#pragma once

#include <cstdint>

namespace kvmbus::virtdev {

/// Judges each second by itself: in it, while reads or writes were under way in the host, did the
/// disk do as many units a second as the minimum? A second in which they were under way for less
/// than half of it asks too little to be judged, and is good. Under its owner's lock. `units`: what
/// the disk has done until now, in all.
class MinimumMonitor {
 public:
  static constexpr uint64_t kWindowNs = 1'000'000'000;

  /// Sets the minimum to judge by from now on; 0: nothing is judged.
  void SetMinimum(uint64_t minimum_iops, uint64_t now_ns, uint64_t units);
  /// A queue has requests under way from now on, or none any more.
  void Busy(uint64_t now_ns, uint64_t units);
  void Idle(uint64_t now_ns, uint64_t units);
  /// Judges the seconds that are over. To be called before the first unit of a new one is counted.
  void Roll(uint64_t now_ns, uint64_t units);

  uint64_t window_end_ns() const { return window_ns_ + kWindowNs; }
  uint64_t minimum_iops() const { return minimum_iops_; }
  bool sufficient() const { return sufficient_; }  ///< in the last second that is over
  uint64_t insufficient_seconds() const { return insufficient_seconds_; }

 private:
  bool IsSufficient(uint64_t busy_ns, uint64_t units) const;
  void AccountBusy(uint64_t until_ns);

  uint64_t minimum_iops_ = 0;
  bool sufficient_ = true;
  uint64_t insufficient_seconds_ = 0;
  unsigned busy_queues_ = 0;
  uint64_t busy_since_ns_ = 0;  ///< what was before is in busy_ns_
  uint64_t busy_ns_ = 0;        ///< of this window
  uint64_t window_ns_ = 0;      ///< its start
  uint64_t window_units_ = 0;   ///< what was done before it
};

}  // namespace kvmbus::virtdev
