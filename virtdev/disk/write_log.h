// SPDX-License-Identifier: Apache-2.0
/// \file
/// WriteLog: which parts of a disk were written since somebody asked last.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

namespace kvmbus::virtdev {

/// A bit for each granule. Any thread marks; one thread takes.
class WriteLog {
 public:
  static constexpr uint64_t kMinGranule = 64u << 10;
  static constexpr uint64_t kMaxGranules = 16u << 20;  ///< 2 MiB of bits

  explicit WriteLog(uint64_t disk_bytes) : disk_bytes_(disk_bytes) {
    while (disk_bytes / granule_ > kMaxGranules) granule_ *= 2;
    const uint64_t granules = (disk_bytes + granule_ - 1) / granule_;
    words_ = std::vector<std::atomic<uint64_t>>((granules + 63) / 64);
  }

  /// [offset, offset + length) has changed. Ranges lie within the disk.
  void Mark(uint64_t offset, uint64_t length) {
    if (length == 0) return;
    for (uint64_t granule = offset / granule_; granule <= (offset + length - 1) / granule_;
         ++granule)
      words_[granule / 64].fetch_or(uint64_t{1} << (granule % 64));
  }
  /// How much is marked.
  uint64_t marked_bytes() const {
    uint64_t granules = 0;
    for (const auto& word : words_)
      granules += static_cast<uint64_t>(__builtin_popcountll(word.load()));
    return granules * granule_;
  }
  /// Calls `take(offset, length)` for each granule that is marked, which it is no more from before
  /// the call; marks made meanwhile wait for the next call. Ends when `take` returns false; that
  /// granule and those behind it stay marked.
  bool Take(const std::function<bool(uint64_t offset, uint64_t length)>& take) {
    for (uint64_t i = 0; i < words_.size(); ++i) {
      uint64_t word = words_[i].exchange(0);
      while (word != 0) {
        const auto bit = static_cast<uint64_t>(__builtin_ctzll(word));
        const uint64_t offset = (i * 64 + bit) * granule_;
        if (!take(offset, std::min(granule_, disk_bytes_ - offset))) {
          words_[i].fetch_or(word);
          return false;
        }
        word &= word - 1;
      }
    }
    return true;
  }

 private:
  const uint64_t disk_bytes_;
  uint64_t granule_ = kMinGranule;
  std::vector<std::atomic<uint64_t>> words_;
};

}  // namespace kvmbus::virtdev
