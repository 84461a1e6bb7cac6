// SPDX-License-Identifier: Apache-2.0
/// \file
/// Counter: how often a limit was hit, a message refused, a request served. Any thread may add.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string_view>

namespace kvmbus::vmm {

class Counter {
 public:
  void Add(uint64_t n = 1) { value_.fetch_add(n, std::memory_order_relaxed); }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

/// What an object with counters calls for each of them: ("vmbus_gpadl_refused", counter).
using CounterVisitor = std::function<void(std::string_view name, const Counter& counter)>;

}  // namespace kvmbus::vmm
