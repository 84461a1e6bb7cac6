// SPDX-License-Identifier: Apache-2.0
/// \file
/// Histogram: how long things took, in buckets of two an octave.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace kvmbus::vmm {

/// A number that one thread adds to and any thread reads: cheaper than a Counter, for it takes no
/// locked instruction.
class OwnedCounter {
 public:
  void Add(uint64_t n = 1) { Set(value() + n); }
  void Set(uint64_t value) { value_.store(value, std::memory_order_relaxed); }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

/// Bucket 0 has what is below 512 ns; then two buckets an octave; the last one, from 18 minutes on,
/// has no end.
struct HistogramBuckets {
  static constexpr unsigned kFirstBit = 9;
  static constexpr size_t kCount = 64;

  static size_t IndexOf(uint64_t ns) {
    if (ns >> kFirstBit == 0) return 0;
    const auto top = static_cast<unsigned>(std::bit_width(ns)) - 1;
    return std::min<size_t>(1 + 2 * (top - kFirstBit) + (ns >> (top - 1) & 1), kCount - 1);
  }
  /// What a bucket's values are below; ~0 for the last one.
  static uint64_t EndOf(size_t bucket) {
    if (bucket == kCount - 1) return ~uint64_t{0};
    if (bucket % 2 == 0) return uint64_t{1} << (kFirstBit + bucket / 2);
    return uint64_t{3} << (kFirstBit + bucket / 2 - 1);
  }
};

/// A histogram as it was at some moment, or the sum of several. The numbers of one that is being
/// added to may be a few apart.
struct HistogramSnapshot {
  std::array<uint64_t, HistogramBuckets::kCount> buckets{};
  uint64_t count = 0;
  uint64_t sum_ns = 0;
  uint64_t max_ns = 0;

  /// The end of the bucket that has the value of this rank (0.99: 99 of 100 are not longer), or the
  /// longest one if that is less; 0 of none.
  uint64_t Quantile(double rank) const {
    uint64_t below = 0;
    for (size_t i = 0; i < buckets.size(); ++i) {
      below += buckets[i];
      if (below != 0 && static_cast<double>(below) >= rank * static_cast<double>(count))
        return std::min(HistogramBuckets::EndOf(i), max_ns);
    }
    return max_ns;
  }
  void Add(const HistogramSnapshot& other) {
    for (size_t i = 0; i < buckets.size(); ++i) buckets[i] += other.buckets[i];
    count += other.count;
    sum_ns += other.sum_ns;
    max_ns = std::max(max_ns, other.max_ns);
  }
};

/// One thread adds, any thread reads.
class Histogram {
 public:
  void Add(uint64_t ns) {
    buckets_[HistogramBuckets::IndexOf(ns)].Add();
    sum_ns_.Add(ns);
    if (ns > max_ns_.value()) max_ns_.Set(ns);
  }
  HistogramSnapshot Read() const {
    HistogramSnapshot snapshot;
    for (size_t i = 0; i < buckets_.size(); ++i)
      snapshot.count += snapshot.buckets[i] = buckets_[i].value();
    snapshot.sum_ns = sum_ns_.value();
    snapshot.max_ns = max_ns_.value();
    return snapshot;
  }

 private:
  std::array<OwnedCounter, HistogramBuckets::kCount> buckets_;
  OwnedCounter sum_ns_, max_ns_;
};

}  // namespace kvmbus::vmm
