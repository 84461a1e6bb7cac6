// SPDX-License-Identifier: Apache-2.0
/// \file
/// BlockingBudget: how much of its time a loop may lose to what seldom blocks.
#pragma once

#include <algorithm>
#include <cstdint>

namespace kvmbus::vmm {

/// What is fast nearly always, and cannot be told beforehand when it is not, as a write to the page
/// cache, may be done on a loop as long as the budget allows it. It does until the loop has lost
/// more than kBurstNs, and again when that has become a small share of the time: the loop's other
/// work waits for a twentieth of it at most.
class BlockingBudget {
 public:
  static constexpr uint64_t kBurstNs = 2'000'000;
  static constexpr uint64_t kShare = 20;

  bool Allows(uint64_t now_ns) const { return paid_ns_ <= now_ns + kShare * kBurstNs; }
  /// Something took `took_ns`, until `now_ns`; where it does not block it takes `fair_ns` at most.
  void Took(uint64_t now_ns, uint64_t took_ns, uint64_t fair_ns) {
    if (took_ns > fair_ns) paid_ns_ = std::max(paid_ns_, now_ns) + kShare * (took_ns - fair_ns);
  }

 private:
  uint64_t paid_ns_ = 0;  ///< when nothing of what was lost will count any more
};

}  // namespace kvmbus::vmm
