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

  void AddRange(uint64_t first, uint64_t pages) {
    for (const uint64_t end = first + pages; first < end; first = WordEnd(first, end))
      words_[first / 64] |= Mask(first, WordEnd(first, end));
  }
  void RemoveRange(uint64_t first, uint64_t pages) {
    for (const uint64_t end = first + pages; first < end; first = WordEnd(first, end))
      words_[first / 64] &= ~Mask(first, WordEnd(first, end));
  }
  void AddAll(const PageSet& other) {
    for (size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
  }

  struct Run {
    uint64_t first, end;
    bool empty() const { return first == end; }
    uint64_t pages() const { return end - first; }
  };
  /// The blocks of `block_pages` in a row that have pages of the set.
  std::vector<uint64_t> Blocks(uint64_t block_pages) const {
    std::vector<uint64_t> blocks;
    const uint64_t end = words_.size() * 64;
    for (uint64_t at = 0; (at = Next(true, at, end)) < end; at = (blocks.back() + 1) * block_pages)
      blocks.push_back(at / block_pages);
    return blocks;
  }

  /// The first pages in a row within [first, end) that are in the set; none: an empty one.
  Run NextRun(uint64_t first, uint64_t end) const {
    first = Next(true, first, end);
    return {first, Next(false, first, end)};
  }

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
  static uint64_t WordEnd(uint64_t page, uint64_t end) {
    return std::min(end, (page / 64 + 1) * 64);
  }
  /// Of pages [first, end), which are of one word.
  static uint64_t Mask(uint64_t first, uint64_t end) {
    return (~uint64_t{0} >> (64 - (end - first))) << (first % 64);
  }
  /// The first page of [first, end) that is in the set, or is not; or `end`.
  uint64_t Next(bool in, uint64_t first, uint64_t end) const {
    for (; first < end; first = WordEnd(first, end)) {
      const uint64_t word = in ? words_[first / 64] : ~words_[first / 64];
      if (word == 0) continue;
      const uint64_t left = word & Mask(first, WordEnd(first, end));
      if (left != 0) return first / 64 * 64 + static_cast<uint64_t>(std::countr_zero(left));
    }
    return end;
  }

  std::vector<uint64_t> words_;
};

}  // namespace kvmbus::vmm
