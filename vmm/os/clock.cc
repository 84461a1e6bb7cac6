// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/clock.h"

#include <ctime>

namespace kvmbus::vmm {
namespace {

uint64_t Read(clockid_t id) {
  timespec now;
  ::clock_gettime(id, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

class HostClock final : public Clock {
 public:
  uint64_t MonotonicNs() const override { return Read(CLOCK_MONOTONIC); }
  uint64_t RealtimeNs() const override { return Read(CLOCK_REALTIME); }
};

}  // namespace

const Clock& SystemClock() {
  static const HostClock clock;
  return clock;
}

}  // namespace kvmbus::vmm
