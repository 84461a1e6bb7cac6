// SPDX-License-Identifier: Apache-2.0
/// \file
/// A BlockFile in memory whose power can be cut: of what was written since the last flush, any
/// subset of 4 KiB sectors survives.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "virtdev/disk/block_file.h"

namespace kvmbus::tests {

/// The bytes of a file. Copies share their sectors until one is written.
class SparseBytes {
 public:
  static constexpr uint64_t kSector = 4096;
  using Sector = std::array<uint8_t, kSector>;
  using SharedSector = std::shared_ptr<const Sector>;  // null: zeroes

  uint64_t size() const { return size_; }

  void Read(std::span<uint8_t> out, uint64_t offset) const {
    while (!out.empty()) {
      const uint64_t in_sector = offset % kSector;
      const size_t piece = std::min<uint64_t>(out.size(), kSector - in_sector);
      const auto at = sectors_.find(offset / kSector);
      if (at == sectors_.end())
        std::memset(out.data(), 0, piece);
      else
        std::memcpy(out.data(), at->second->data() + in_sector, piece);
      out = out.subspan(piece);
      offset += piece;
    }
  }
  std::vector<uint8_t> Read(uint64_t offset, uint64_t length) const {
    std::vector<uint8_t> bytes(length);
    Read(bytes, offset);
    return bytes;
  }

  SharedSector Get(uint64_t number) const {
    const auto at = sectors_.find(number);
    return at == sectors_.end() ? nullptr : at->second;
  }
  /// The first sector from `number` on that holds something; the largest number if none does.
  uint64_t NextFrom(uint64_t number) const {
    const auto at = sectors_.lower_bound(number);
    return at == sectors_.end() ? ~uint64_t{0} : at->first;
  }
  /// Extends the file if it must; `end` is how far the write that this is part of goes.
  void Set(uint64_t number, SharedSector sector, uint64_t end) {
    size_ = std::max(size_, end);
    if (sector)
      sectors_[number] = std::move(sector);
    else
      sectors_.erase(number);
  }
  void Write(std::span<const uint8_t> bytes, uint64_t offset) {
    while (!bytes.empty()) {
      const uint64_t in_sector = offset % kSector;
      const size_t piece = std::min<uint64_t>(bytes.size(), kSector - in_sector);
      Set(offset / kSector, Merge(offset / kSector, bytes.first(piece), in_sector), offset + piece);
      bytes = bytes.subspan(piece);
      offset += piece;
    }
  }
  void Resize(uint64_t bytes) {
    if (bytes < size_) {
      sectors_.erase(sectors_.lower_bound((bytes + kSector - 1) / kSector), sectors_.end());
      const auto last = sectors_.find(bytes / kSector);
      if (bytes % kSector != 0 && last != sectors_.end()) {
        auto cut = std::make_shared<Sector>(*last->second);
        std::fill(cut->begin() + static_cast<ptrdiff_t>(bytes % kSector), cut->end(), 0);
        last->second = std::move(cut);
      }
    }
    size_ = bytes;
  }
  /// A sector with a part of it replaced.
  SharedSector Merge(uint64_t number, std::span<const uint8_t> bytes, uint64_t in_sector) const {
    auto sector = std::make_shared<Sector>();
    const SharedSector old = Get(number);
    if (old)
      *sector = *old;
    else
      sector->fill(0);
    std::copy(bytes.begin(), bytes.end(), sector->begin() + static_cast<ptrdiff_t>(in_sector));
    return sector;
  }
  bool operator==(const SparseBytes& other) const {
    return size_ == other.size_ && Read(0, size_) == other.Read(0, size_);
  }

 private:
  std::map<uint64_t, SharedSector> sectors_;
  uint64_t size_ = 0;
};

/// The medium, which outlives the file objects on it. One thread.
struct CrashMedium {
  struct Change {
    bool resize = false;
    uint64_t number = 0;  ///< of the sector, or the new size
    SparseBytes::SharedSector sector;
    uint64_t end = 0;
  };

  CrashMedium() = default;
  /// A machine that starts again with what a crash has left.
  explicit CrashMedium(const SparseBytes& content) : now(content), durable(content) {}

  SparseBytes now;
  SparseBytes durable;
  std::vector<Change> pending;
  uint64_t flushes = 0;
  std::function<void()>
      on_event;              ///< before each change of a sector or of the size, and each flush
  bool at_flush = false;     ///< the event is a flush
  bool fail_writes = false;  ///< with EIO
  bool fail_flushes = false;
  uint64_t most_bytes = ~uint64_t{0};  ///< the host has no space behind it: ENOSPC

  /// What is found after a power cut now: each change since the last flush may have reached the
  /// medium or not. Now and then the later ones did and the earlier ones did not.
  SparseBytes Crash(std::mt19937_64& random) const {
    SparseBytes content = durable;
    constexpr uint64_t kOdds[] = {0, 1, 4, 7, 8};  // of 8
    const uint64_t odds = kOdds[random() % std::size(kOdds)];
    const bool late = random() % 3 == 0;
    const size_t first = late ? random() % (pending.size() + 1) : 0;
    for (size_t i = first; i < pending.size(); ++i) {
      const Change& change = pending[i];
      if (!late && random() % 8 >= odds) continue;
      if (change.resize)
        content.Resize(change.number);
      else
        content.Set(change.number, change.sector, change.end);
    }
    return content;
  }
};

class CrashFile : public virtdev::BlockFile {
 public:
  explicit CrashFile(CrashMedium& medium) : medium_(medium) {}

  vmm::Result<uint64_t> Size() override { return medium_.now.size(); }
  vmm::Result<void> Read(std::span<uint8_t> buffer, uint64_t offset) override {
    if (offset > medium_.now.size() || buffer.size() > medium_.now.size() - offset)
      return vmm::Error(vmm::Code::kOutOfRange, "reading past the end of the file");
    medium_.now.Read(buffer, offset);
    return {};
  }
  vmm::Result<void> Write(std::span<const uint8_t> buffer, uint64_t offset) override {
    if (medium_.fail_writes) return vmm::Error::FromErrno(EIO, "writing");
    // Sectors are written one by one: a longer write can be torn between them.
    while (!buffer.empty()) {
      const uint64_t in_sector = offset % SparseBytes::kSector;
      const size_t piece = std::min<uint64_t>(buffer.size(), SparseBytes::kSector - in_sector);
      const uint64_t number = offset / SparseBytes::kSector;
      Apply({false, number, medium_.now.Merge(number, buffer.first(piece), in_sector),
             offset + piece});
      buffer = buffer.subspan(piece);
      offset += piece;
    }
    return {};
  }
  vmm::Result<void> Flush() override {
    medium_.at_flush = true;
    if (medium_.on_event) medium_.on_event();
    medium_.at_flush = false;
    if (medium_.fail_flushes) return vmm::Error::FromErrno(EIO, "flushing");
    medium_.durable = medium_.now;
    medium_.pending.clear();
    ++medium_.flushes;
    return {};
  }
  vmm::Result<void> Resize(uint64_t bytes) override {
    if (medium_.fail_writes) return vmm::Error::FromErrno(EIO, "resizing");
    Apply({true, bytes, nullptr, 0});
    return {};
  }
  vmm::Result<void> Zero(uint64_t offset, uint64_t length, bool keep_space) override {
    if (keep_space && offset + length > medium_.most_bytes)
      return vmm::Error::FromErrno(ENOSPC, "zeroing");
    // Like a file system: what lies past the end stays there.
    if (offset >= medium_.now.size()) return {};
    length = std::min(length, medium_.now.size() - offset);
    const uint64_t end = offset + length;
    while (offset < end) {
      const uint64_t number = offset / SparseBytes::kSector;
      const uint64_t in_sector = offset % SparseBytes::kSector;
      const uint64_t piece = std::min(end - offset, SparseBytes::kSector - in_sector);
      if (piece != SparseBytes::kSector) {
        TRY_VOID(Write(std::vector<uint8_t>(piece, 0), offset));
        offset += piece;
        continue;
      }
      if (medium_.fail_writes) return vmm::Error::FromErrno(EIO, "zeroing");
      const uint64_t next = medium_.now.NextFrom(number);
      if (next >= end / SparseBytes::kSector) {
        offset = end / SparseBytes::kSector * SparseBytes::kSector;
        continue;
      }
      Apply({false, next, nullptr, 0});
      offset = (next + 1) * SparseBytes::kSector;
    }
    return {};
  }

 private:
  void Apply(CrashMedium::Change change) {
    if (medium_.on_event) medium_.on_event();
    if (change.resize)
      medium_.now.Resize(change.number);
    else
      medium_.now.Set(change.number, change.sector, change.end);
    medium_.pending.push_back(std::move(change));
  }

  CrashMedium& medium_;
};

}  // namespace kvmbus::tests
