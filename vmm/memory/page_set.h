// SPDX-License-Identifier: Apache-2.0
/// \file
/// PageSet: a set of guest pages, by their places in the memory file: page 0 is its first 4 KiB.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

namespace kvmbus::vmm {

class PageSet {
 public:
  explicit PageSet(uint64_t pages) : words_((pages + 63) / 64) {}

  void Add(uint64_t page) { words_[page / 64] |= uint64_t{1} << (page % 64); }
  void Remove(uint64_t page) { words_[page / 64] &= ~(uint64_t{1} << (page % 64)); }
  bool Contains(uint64_t page) const { return (words_[page / 64] >> (page % 64) & 1) != 0; }
  uint64_t Count() const { return CountIn(0, words_.size() * 64); }

  /// Ranges of pages begin and end at multiples of 64.
  uint64_t CountIn(uint64_t first, uint64_t pages) const {
    uint64_t count = 0;
    for (uint64_t i = first / 64; i < (first + pages) / 64; ++i)
      count += static_cast<uint64_t>(std::popcount(words_[i]));
    return count;
  }
  bool AnyIn(uint64_t first, uint64_t pages) const {
    const auto at = words_.begin() + static_cast<ptrdiff_t>(first / 64);
    return std::any_of(at, at + static_cast<ptrdiff_t>(pages / 64),
                       [](uint64_t word) { return word != 0; });
  }

  /// Bit i of word j is page 64 j + i.
  std::span<uint64_t> words() { return words_; }
  std::span<const uint64_t> words() const { return words_; }

 private:
  std::vector<uint64_t> words_;
};

}  // namespace kvmbus::vmm
