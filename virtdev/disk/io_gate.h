// SPDX-License-Identifier: Apache-2.0
/// \file
/// IoGate: tells when all requests that were under way at some moment have ended, without a lock on
/// their path.
#pragma once

#include <atomic>
#include <cstdint>

namespace kvmbus::virtdev {

/// Requests pass through in phases. Enter and Leave: any thread. The rest: under an owner's lock.
class IoGate {
 public:
  /// The value is for Leave.
  uint32_t Enter() {
    for (;;) {
      const uint64_t phase = phase_.load();
      under_way_.fetch_add(OneOf(phase));
      if (phase_.load() == phase) return phase & 1;
      under_way_.fetch_sub(OneOf(phase));  // the phase changed meanwhile
    }
  }
  void Leave(uint32_t token) { under_way_.fetch_sub(OneOf(token)); }

  uint64_t phase() const { return phase_.load(); }
  /// Goes on to the next phase if the requests of the last one have all ended. The images of a
  /// chain share a gate, each with a lock of its own: who comes second changes nothing.
  void Advance() {
    uint64_t phase = phase_.load();
    if ((under_way_.load() & OneOf(phase + 1) * kCount) == 0)
      phase_.compare_exchange_strong(phase, phase + 1);
  }
  /// No request is under way, unless one enters at this moment: one that enters again before it
  /// leaves is seen whatever its phases are, for this is one look at both counts. Any thread.
  bool IsEmpty() const { return under_way_.load() == 0; }
  /// All requests that entered before the gate reached `phase` + 1 have ended.
  bool HasEnded(uint64_t phase) const { return phase_.load() >= phase + 2; }

 private:
  static constexpr uint64_t kCount = 0xffffffff;
  /// A request of that phase, in under_way_.
  static constexpr uint64_t OneOf(uint64_t phase) { return uint64_t{1} << (phase & 1) * 32; }

  std::atomic<uint64_t> phase_{0};
  std::atomic<uint64_t> under_way_{0};  // even phases in the lower half, odd ones in the upper
};

}  // namespace kvmbus::virtdev
