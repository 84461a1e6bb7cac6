// SPDX-License-Identifier: Apache-2.0
/// \file
/// Guest memory, a model guest that writes it, and a plain target, for the tests of saved memory.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <mutex>
#include <random>
#include <set>
#include <string>

#include "vmm/hypervisor/dirty_tracker.h"
#include "vmm/saved_state/block_codec.h"
#include "vmm/saved_state/ram_file.h"

namespace kvmbus::vmm {

/// Blocks in the order in which they get their places, as a container has them.
class PlainTarget final : public RamTarget {
 public:
  explicit PlainTarget(uint64_t blocks)
      : file_(::memfd_create("ram-target", MFD_CLOEXEC)), places_(blocks) {}
  int fd() const override { return file_.get(); }
  int direct_fd() const override { return direct.get(); }
  bool HasPlace(uint64_t block) const override { return places_[block].has_value(); }
  Result<uint64_t> Place(uint64_t block) override {
    const std::lock_guard lock(mutex_);
    if (fails) return Error(Code::kResourceExhausted, "the disk is full");
    if (!places_[block] || places_[block]->compressed_bytes != 0) {
      places_[block] = RamPlace{end_};
      end_ += kRamBlockBytes;
      (void)!::ftruncate(file_.get(), static_cast<off_t>(end_));
    }
    return places_[block]->offset;
  }
  Result<void> PutCompressed(uint64_t block, std::span<const uint8_t> bytes) override {
    const std::lock_guard lock(mutex_);
    EXPECT_TRUE(!places_[block] || places_[block]->compressed_bytes != 0);
    places_[block] = RamPlace{end_, static_cast<uint32_t>(bytes.size())};
    TRY_VOID(PWriteAll(file_.get(), bytes, end_));
    end_ += kRamBlockBytes;
    (void)!::ftruncate(file_.get(), static_cast<off_t>(end_));
    return {};
  }
  bool IsCompressed(uint64_t block) const override {
    return places_[block] && places_[block]->compressed_bytes != 0;
  }
  RamSource Source() const { return {file_.Duplicate().value(), places_}; }
  uint64_t places() const { return end_ / kRamBlockBytes; }
  std::string Content() const {
    std::string content(places_.size() * kRamBlockBytes, '\0');
    for (size_t block = 0; block < places_.size(); ++block) {
      if (!places_[block]) continue;
      std::vector<uint8_t> bytes(kRamBlockBytes), compressed(places_[block]->compressed_bytes);
      const bool plain = compressed.empty();
      EXPECT_TRUE(PReadAll(file_.get(), plain ? bytes : compressed, places_[block]->offset).ok());
      EXPECT_TRUE(plain || DecompressBlock(compressed, bytes).ok());
      std::copy(bytes.begin(), bytes.end(),
                content.begin() + static_cast<ptrdiff_t>(block * kRamBlockBytes));
    }
    return content;
  }

  std::atomic<bool> fails{false};
  Fd direct;

 private:
  Fd file_;
  std::mutex mutex_;
  std::vector<std::optional<RamPlace>> places_;
  uint64_t end_ = 0;
};

/// Writes pages as a guest does, and is the tracker that notices.
class ModelGuest final : public DirtyTracker {
 public:
  /// Of huge pages where the host has them: see HasHugePages.
  explicit ModelGuest(uint64_t bytes, bool huge_pages = false) {
    const MemoryRange ranges[] = {{0, bytes}};
    if (huge_pages) {
      auto created = GuestMemory::Create(ranges, {.huge_pages = true});
      if (created.ok()) memory = std::move(created).value();
    }
    if (!memory) memory = std::move(GuestMemory::Create(ranges)).value();
  }
  bool HasHugePages() const { return memory->host_page_bytes() != kPageSize; }
  void WritePage(uint64_t page, uint8_t value) {
    const std::vector<uint8_t> content(kPageSize, value);
    // As KVM does: noted first, so that no copy of the old content is thought new.
    {
      const std::lock_guard lock(mutex_);
      if (tracking) dirty_.insert(page);
    }
    std::memcpy(memory->base() + page * kPageSize, content.data(), kPageSize);
    const std::lock_guard lock(mutex_);
    if (tracking) dirty_.insert(page);
  }
  void WriteAtRandom(std::mt19937& random, int pages) {
    for (int i = 0; i < pages; ++i)
      WritePage(random() % memory->ram_pages(), static_cast<uint8_t>(random()));
  }
  std::string Content() const {
    return std::string(reinterpret_cast<const char*>(memory->base()), memory->ram_bytes());
  }

  Result<void> StartTracking() override {
    const std::lock_guard lock(mutex_);
    tracking = true;
    return {};
  }
  Result<void> TakeDirtyPages(PageSet* pages, bool) override {
    const std::lock_guard lock(mutex_);
    for (const uint64_t page : dirty_) pages->Add(page);
    dirty_.clear();
    return {};
  }
  void StopTracking() override { tracking = false; }

  std::unique_ptr<GuestMemory> memory;
  std::atomic<bool> tracking{false};

 private:
  std::mutex mutex_;
  std::set<uint64_t> dirty_;
};

}  // namespace kvmbus::vmm
