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
      under_way_[phase & 1].fetch_add(1);
      if (phase_.load() == phase) return phase & 1;
      under_way_[phase & 1].fetch_sub(1);  // the phase changed meanwhile
    }
  }
  void Leave(uint32_t token) { under_way_[token].fetch_sub(1); }

  uint64_t phase() const { return phase_.load(); }
  /// Goes on to the next phase if the requests of the last one have all ended. The images of a
  /// chain share a gate, each with a lock of its own: who comes second changes nothing.
  void Advance() {
    uint64_t phase = phase_.load();
    if (under_way_[(phase + 1) & 1].load() == 0) phase_.compare_exchange_strong(phase, phase + 1);
  }
  /// No request is under way, unless one enters at this moment. Any thread.
  bool IsEmpty() const { return under_way_[0].load() == 0 && under_way_[1].load() == 0; }
  /// All requests that entered before the gate reached `phase` + 1 have ended.
  bool HasEnded(uint64_t phase) const { return phase_.load() >= phase + 2; }

 private:
  std::atomic<uint64_t> phase_{0};
  std::atomic<uint64_t> under_way_[2]{};
};

}  // namespace kvmbus::virtdev
