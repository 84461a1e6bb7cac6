// SPDX-License-Identifier: Apache-2.0
/// \file
/// GpadlTable: the guest's page lists ("GPADLs") of one VMBus connection, from their first message
/// to their teardown.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "state/vmbus.pb.h"
#include "virtdev/vmbus/channel.h"
#include "vmm/result/result.h"

namespace kvmbus::virtdev::vmbus {

/// Home: the main thread. Ranges alone may come from any thread: devices look up buffers there.
class GpadlTable {
 public:
  static constexpr size_t kMaxGpadls = 8192;
  static constexpr size_t kMaxInProgress = 64;
  /// Of all GPADLs, 1280 MiB as Hyper-V 2019 has it; range headers count as a page.
  static constexpr uint64_t kMaxPages = (1280ull << 20) / 4096;

  struct Key {
    uint32_t channel_id;
    uint32_t gpadl_id;
    auto operator<=>(const Key&) const = default;
  };
  enum class Outcome { kMoreToCome, kComplete, kInvalid, kLimit };

  explicit GpadlTable(std::function<bool(uint64_t pfn)> is_ram_page)
      : is_ram_page_(std::move(is_ram_page)) {}

  /// The first message: `range_bytes` of ranges are announced, `bytes` are the first of them. After
  /// kInvalid and kLimit there is no such GPADL, unless there was before.
  Outcome Begin(const Key& key, uint16_t range_bytes, uint16_t range_count,
                std::span<const uint8_t> bytes);
  /// The GPADL of this id whose ranges are still coming in: continuations name no channel.
  std::optional<Key> InProgress(uint32_t gpadl_id) const;
  /// A continuation of one in progress. kInvalid drops it.
  Outcome Append(const Key& key, std::span<const uint8_t> bytes);

  bool IsComplete(const Key& key) const;
  void Erase(const Key& key);
  void EraseChannel(uint32_t channel_id);
  /// Drops what a channel has in progress and tells which.
  std::vector<Key> EraseInProgress(uint32_t channel_id);
  void Clear();

  /// The pages if this GPADL can be a pair of rings (complete, one range of whole pages), else
  /// empty.
  std::vector<uint64_t> RingPages(const Key& key) const;
  /// All ranges of a complete GPADL, else empty. Any thread.
  std::vector<GpaRange> Ranges(const Key& key) const;

  size_t size() const { return data_.gpadls.size(); }

  void Save(state::VmbusControl* state) const;
  /// Fills this (empty) table. kDataLoss if the state is not one that Save writes; the table is
  /// then of no use.
  vmm::Result<void> Load(const state::VmbusControl& state);
  /// Takes over the content of a table that Load filled.
  void TakeFrom(GpadlTable& other);

  void CheckInvariants() const;

 private:
  struct Gpadl {
    bool complete = false;
    uint16_t range_count = 0;
    size_t total_words = 0;       ///< announced; each 8 bytes
    std::vector<uint64_t> words;  ///< ranges: {bytes | offset << 32, pfn...}
  };
  struct Data {
    std::map<Key, Gpadl> gpadls;
    std::map<uint32_t, Key> in_progress;  ///< by GPADL id, unique among them
    uint64_t pages = 0;
  };
  using Iterator = std::map<Key, Gpadl>::iterator;

  Outcome AppendTo(Iterator at, std::span<const uint8_t> bytes);
  bool RangesAreValid(const Gpadl& gpadl) const;
  void EraseAt(Iterator at);

  const std::function<bool(uint64_t)> is_ram_page_;
  mutable std::mutex mutex_;  // guards data_ against Ranges: held to change it and by Ranges
  Data data_;
};

}  // namespace kvmbus::virtdev::vmbus
