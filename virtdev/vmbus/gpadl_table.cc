// SPDX-License-Identifier: Apache-2.0
#include "virtdev/vmbus/gpadl_table.h"

#include <algorithm>
#include <cstring>

namespace kvmbus::virtdev::vmbus {
namespace {

// A range's first word; its page frame numbers follow.
uint64_t RangeBytes(uint64_t word) { return word & 0xffffffff; }
uint64_t RangeOffset(uint64_t word) { return word >> 32; }
uint64_t RangePages(uint64_t word) { return (RangeOffset(word) + RangeBytes(word) + 4095) / 4096; }

constexpr uint32_t kMaxWords = 0xffff / 8;  // what a header can announce

}  // namespace

GpadlTable::Outcome GpadlTable::Begin(const Key& key, uint16_t range_bytes, uint16_t range_count,
                                      std::span<const uint8_t> bytes) {
  const size_t words = range_bytes / 8;
  // A range takes two words at least.
  if (data_.gpadls.count(key) != 0 || data_.in_progress.count(key.gpadl_id) != 0 ||
      range_count == 0 || range_bytes % 8 != 0 || words < size_t{2} * range_count)
    return Outcome::kInvalid;
  if (data_.gpadls.size() >= kMaxGpadls || data_.in_progress.size() >= kMaxInProgress ||
      data_.pages + words > kMaxPages)
    return Outcome::kLimit;
  std::lock_guard lock(mutex_);
  const Iterator at = data_.gpadls.emplace(key, Gpadl()).first;
  at->second.range_count = range_count;
  at->second.total_words = words;
  data_.in_progress.emplace(key.gpadl_id, key);
  data_.pages += words;
  return AppendTo(at, bytes);
}

std::optional<GpadlTable::Key> GpadlTable::InProgress(uint32_t gpadl_id) const {
  const auto at = data_.in_progress.find(gpadl_id);
  if (at == data_.in_progress.end()) return std::nullopt;
  return at->second;
}

GpadlTable::Outcome GpadlTable::Append(const Key& key, std::span<const uint8_t> bytes) {
  const Iterator at = data_.gpadls.find(key);
  KVMBUS_ASSERT(at != data_.gpadls.end() && !at->second.complete);
  std::lock_guard lock(mutex_);
  return AppendTo(at, bytes);
}

GpadlTable::Outcome GpadlTable::AppendTo(Iterator at, std::span<const uint8_t> bytes) {
  Gpadl& gpadl = at->second;
  // More than was announced is cut off: some firmware sends a last body of full size.
  const size_t before = gpadl.words.size();
  const size_t count = std::min(bytes.size() / 8, gpadl.total_words - before);
  gpadl.words.resize(before + count);
  if (count != 0) std::memcpy(gpadl.words.data() + before, bytes.data(), count * 8);
  if (gpadl.words.size() < gpadl.total_words) return Outcome::kMoreToCome;
  if (!RangesAreValid(gpadl)) {
    EraseAt(at);
    return Outcome::kInvalid;
  }
  gpadl.complete = true;
  data_.in_progress.erase(at->first.gpadl_id);
  return Outcome::kComplete;
}

bool GpadlTable::RangesAreValid(const Gpadl& gpadl) const {
  size_t at = 0;
  for (uint16_t range = 0; range < gpadl.range_count; ++range) {
    if (at >= gpadl.words.size()) return false;
    const uint64_t first = gpadl.words[at];
    const uint64_t pages = RangePages(first);
    if (RangeBytes(first) == 0 || RangeOffset(first) > 0xfff || pages > gpadl.words.size() - at - 1)
      return false;
    for (uint64_t i = 0; i < pages; ++i) {
      if (!is_ram_page_(gpadl.words[at + 1 + i])) return false;
    }
    at += 1 + pages;
  }
  return at == gpadl.words.size();
}

bool GpadlTable::IsComplete(const Key& key) const {
  const auto at = data_.gpadls.find(key);
  return at != data_.gpadls.end() && at->second.complete;
}

void GpadlTable::EraseAt(Iterator at) {
  data_.pages -= at->second.total_words;
  if (!at->second.complete) data_.in_progress.erase(at->first.gpadl_id);
  data_.gpadls.erase(at);
}

void GpadlTable::Erase(const Key& key) {
  const Iterator at = data_.gpadls.find(key);
  KVMBUS_ASSERT(at != data_.gpadls.end());
  std::lock_guard lock(mutex_);
  EraseAt(at);
}

void GpadlTable::EraseChannel(uint32_t channel_id) {
  std::lock_guard lock(mutex_);
  for (Iterator at = data_.gpadls.lower_bound({channel_id, 0});
       at != data_.gpadls.end() && at->first.channel_id == channel_id;)
    EraseAt(at++);
}

std::vector<GpadlTable::Key> GpadlTable::EraseInProgress(uint32_t channel_id) {
  std::vector<Key> keys;
  for (const auto& [id, key] : data_.in_progress) {
    if (key.channel_id == channel_id) keys.push_back(key);
  }
  for (const Key& key : keys) Erase(key);
  return keys;
}

void GpadlTable::Clear() {
  std::lock_guard lock(mutex_);
  data_ = Data();
}

std::vector<uint64_t> GpadlTable::RingPages(const Key& key) const {
  const auto at = data_.gpadls.find(key);
  if (at == data_.gpadls.end() || !at->second.complete || at->second.range_count != 1) return {};
  const std::vector<uint64_t>& words = at->second.words;
  if (RangeOffset(words[0]) != 0 || RangeBytes(words[0]) % 4096 != 0) return {};
  return {words.begin() + 1, words.end()};
}

std::vector<GpaRange> GpadlTable::Ranges(const Key& key) const {
  std::lock_guard lock(mutex_);
  const auto at = data_.gpadls.find(key);
  if (at == data_.gpadls.end() || !at->second.complete) return {};
  std::vector<GpaRange> ranges;
  for (auto word = at->second.words.begin(); word != at->second.words.end();) {
    GpaRange& range = ranges.emplace_back();
    range.bytes = static_cast<uint32_t>(RangeBytes(*word));
    range.offset = static_cast<uint32_t>(RangeOffset(*word));
    const auto pages = static_cast<ptrdiff_t>(RangePages(*word));
    range.pfns.assign(word + 1, word + 1 + pages);
    word += 1 + pages;
  }
  return ranges;
}

void GpadlTable::Save(state::VmbusControl* state) const {
  for (const auto& [key, gpadl] : data_.gpadls) {
    state::VmbusGpadl* saved = state->add_gpadls();
    saved->set_channel_id(key.channel_id);
    saved->set_gpadl_id(key.gpadl_id);
    saved->set_complete(gpadl.complete);
    saved->set_range_count(gpadl.range_count);
    saved->set_total_words(static_cast<uint32_t>(gpadl.total_words));
    *saved->mutable_words() = {gpadl.words.begin(), gpadl.words.end()};
  }
}

vmm::Result<void> GpadlTable::Load(const state::VmbusControl& state) {
  KVMBUS_ASSERT(data_.gpadls.empty());
  const vmm::Error damaged(vmm::Code::kDataLoss, "saved VMBus state: a GPADL is not valid");
  if (static_cast<size_t>(state.gpadls_size()) > kMaxGpadls) return damaged;
  std::lock_guard lock(mutex_);
  for (const state::VmbusGpadl& saved : state.gpadls()) {
    const auto words = static_cast<size_t>(saved.words_size());
    const Key key{saved.channel_id(), saved.gpadl_id()};
    if (saved.range_count() == 0 || saved.range_count() > 0xffff ||
        saved.total_words() > kMaxWords || saved.total_words() < 2 * saved.range_count() ||
        words > saved.total_words() || saved.complete() != (words == saved.total_words()))
      return damaged;
    Gpadl gpadl;
    gpadl.complete = saved.complete();
    gpadl.range_count = static_cast<uint16_t>(saved.range_count());
    gpadl.total_words = saved.total_words();
    gpadl.words.assign(saved.words().begin(), saved.words().end());
    data_.pages += gpadl.total_words;
    if (gpadl.complete ? !RangesAreValid(gpadl)
                       : !data_.in_progress.emplace(key.gpadl_id, key).second)
      return damaged;
    if (!data_.gpadls.emplace(key, std::move(gpadl)).second) return damaged;
  }
  if (data_.in_progress.size() > kMaxInProgress || data_.pages > kMaxPages) return damaged;
  return {};
}

void GpadlTable::TakeFrom(GpadlTable& other) {
  std::lock_guard lock(mutex_);
  data_ = std::move(other.data_);
  other.data_ = Data();
}

void GpadlTable::CheckInvariants() const {
  uint64_t pages = 0;
  size_t in_progress = 0;
  for (const auto& [key, gpadl] : data_.gpadls) {
    KVMBUS_ASSERT(gpadl.words.size() <= gpadl.total_words);
    KVMBUS_ASSERT(gpadl.complete == (gpadl.words.size() == gpadl.total_words));
    const auto under_way = data_.in_progress.find(key.gpadl_id);
    KVMBUS_ASSERT(gpadl.complete ||
                  (under_way != data_.in_progress.end() && under_way->second == key));
    pages += gpadl.total_words;
    in_progress += gpadl.complete ? 0 : 1;
  }
  KVMBUS_ASSERT(pages == data_.pages && pages <= kMaxPages);
  KVMBUS_ASSERT(in_progress == data_.in_progress.size() && in_progress <= kMaxInProgress);
  KVMBUS_ASSERT(data_.gpadls.size() <= kMaxGpadls);
}

}  // namespace kvmbus::virtdev::vmbus
