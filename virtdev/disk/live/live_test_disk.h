// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the tests of disks in use share: image files in a folder of their own, and a guest of
/// several threads that reads, writes, trims and compares with what it knows.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "virtdev/disk/image_format.h"
#include "virtdev/disk/live/live_disk.h"
#include "virtdev/disk/tools/disk_tools.h"

namespace kvmbus::virtdev::live_test {

using Bytes = std::vector<uint8_t>;

inline constexpr uint64_t kMiB = 1u << 20;
inline constexpr uint64_t kDiskBytes = 32 * kMiB;
inline constexpr uint64_t kStrip = kMiB;           ///< also the block size of VHDX images
inline constexpr uint32_t kVhdBlock = 512u << 10;  ///< of a VHD that has no parent

class Folder {
 public:
  Folder() {
    char path[] = "/tmp/live-disk-test-XXXXXX";
    path_ = ::mkdtemp(path);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline void MakeImage(const std::string& path, const std::string& parent = "") {
  CreateDiskOptions options;
  options.format = FormatOfName(path);
  options.block_bytes = options.format == "vhd" ? kVhdBlock : kStrip;
  options.parent = parent;
  if (parent.empty()) options.size_bytes = kDiskBytes;
  const auto made = CreateDisk(path, options);
  ASSERT_TRUE(made.ok()) << made.error().ToString();
}

/// One thread of the guest: a queue with several requests under way, each in a strip of its own.
/// What the disk has to hold is known at any moment.
class Hammer final : public DiskCompletion {
 public:
  using Op = DiskRequest::Op;

  Hammer(DiskIo& disk, uint64_t seed, std::vector<uint64_t> strips)
      : disk_(disk), random_(seed), free_(std::move(strips)) {
    thread_ = vmm::LoopThread::Start("hammer").value();
    for (const uint64_t strip : free_) content_[strip] = Bytes(kStrip, 0);
  }
  ~Hammer() override { Stop(); }

  /// What the strips hold when it starts.
  void SetContent(const Bytes& disk) {
    for (auto& [strip, bytes] : content_)
      std::copy_n(disk.begin() + static_cast<ptrdiff_t>(strip * kStrip), kStrip, bytes.begin());
  }
  void AddStrip(uint64_t strip) {
    thread_->loop().PostAndWait([&] {
      content_[strip] = Bytes(kStrip, 0);
      free_.push_back(strip);
    });
  }
  void Start() {
    thread_->loop().PostAndWait([this] {
      stopping_ = false;
      if (queue_ == nullptr) queue_ = disk_.OpenQueue(thread_->loop()).value();
      while (slots_.size() < kDepth) slots_.push_back(std::make_unique<Slot>());
      for (const auto& slot : slots_) Submit(*slot);
      queue_->Kick();
    });
  }
  /// The last requests end, the queue goes.
  void Stop() {
    thread_->loop().PostAndWait([this] {
      stopping_ = true;
      if (queue_ != nullptr) queue_->Drain();
      queue_.reset();
    });
  }
  uint64_t done() const { return done_.load(); }
  uint64_t wrong() const { return wrong_.load(); }
  const std::map<uint64_t, Bytes>& content() const { return content_; }

  void OnDiskComplete(DiskRequest& request) override {
    Slot& slot = *reinterpret_cast<Slot*>(&request);
    Finish(slot);
    done_.fetch_add(1);
    if (stopping_) return;
    Submit(slot);
    queue_->Kick();
  }

 private:
  static constexpr size_t kDepth = 4;
  struct Slot {
    DiskRequest request;  // first: see OnDiskComplete
    Bytes buffer;
    iovec piece;
    uint64_t strip = 0, at = 0;
  };

  void Submit(Slot& slot) {
    const size_t index = random_() % free_.size();
    slot.strip = free_[index];
    free_[index] = free_.back();
    free_.pop_back();
    DiskRequest& request = slot.request;
    constexpr Op kOps[] = {Op::kRead,  Op::kRead,  Op::kRead,        Op::kWrite, Op::kWrite,
                           Op::kWrite, Op::kWrite, Op::kWriteZeroes, Op::kUnmap, Op::kFlush};
    request.op = kOps[random_() % std::size(kOps)];
    // What an unmapped range holds is known only if the disk promises it.
    if (request.op == Op::kUnmap && !disk_.info().unmapped_reads_zero)
      request.op = Op::kWriteZeroes;
    request.fua = request.op == Op::kWrite && random_() % 16 == 0;
    request.length = 512 * (1 + random_() % 256);
    slot.at = random_() % ((kStrip - request.length) / 512 + 1) * 512;
    const bool whole =
        request.op == Op::kUnmap || (request.op == Op::kWriteZeroes && random_() % 2);
    if (whole) {
      slot.at = 0;
      request.length = kStrip;
    }
    request.offset = slot.strip * kStrip + slot.at;
    slot.buffer.assign(request.length, static_cast<uint8_t>(random_()));
    if (request.op == Op::kWrite) {
      for (size_t i = 0; i < slot.buffer.size(); i += 512)
        slot.buffer[i] = static_cast<uint8_t>(random_());
    }
    slot.piece = {slot.buffer.data(), slot.buffer.size()};
    request.iov = {&slot.piece, 1};
    request.completion = this;
    queue_->Submit(request);
  }

  void Finish(Slot& slot) {
    const DiskRequest& request = slot.request;
    const auto begin = content_[slot.strip].begin() + static_cast<ptrdiff_t>(slot.at);
    if (request.error != 0) wrong_.fetch_add(1);
    if (request.op == Op::kRead && !std::equal(slot.buffer.begin(), slot.buffer.end(), begin))
      wrong_.fetch_add(1);
    if (request.op == Op::kWrite) std::copy(slot.buffer.begin(), slot.buffer.end(), begin);
    if (request.op == Op::kUnmap || request.op == Op::kWriteZeroes)
      std::fill_n(begin, request.length, uint8_t{0});
    free_.push_back(slot.strip);
  }

  DiskIo& disk_;
  std::mt19937_64 random_;
  std::vector<uint64_t> free_;
  std::map<uint64_t, Bytes> content_;
  bool stopping_ = false;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::unique_ptr<DiskQueue> queue_;
  std::atomic<uint64_t> done_{0}, wrong_{0};
  std::unique_ptr<vmm::LoopThread> thread_;
};

/// The guest: two threads, which have the strips in turn.
class Guest {
 public:
  static constexpr size_t kThreads = 2;

  explicit Guest(DiskIo& disk, uint64_t seed = 1) {
    const uint64_t strips = disk.info().size_bytes / kStrip;
    for (size_t i = 0; i < kThreads; ++i) {
      std::vector<uint64_t> own;
      for (uint64_t strip = i; strip < strips; strip += kThreads) own.push_back(strip);
      hammers_.push_back(std::make_unique<Hammer>(disk, seed * kThreads + i, std::move(own)));
    }
  }
  void SetContent(const Bytes& disk) {
    for (const auto& hammer : hammers_) hammer->SetContent(disk);
  }
  void Start() {
    for (const auto& hammer : hammers_) hammer->Start();
  }
  void Stop() {
    for (const auto& hammer : hammers_) hammer->Stop();
  }
  Hammer& hammer(size_t index) { return *hammers_[index]; }
  /// Each thread has done so much more.
  void AwaitRequests(uint64_t count) {
    for (const auto& hammer : hammers_) {
      const uint64_t wanted = hammer->done() + count;
      while (hammer->done() < wanted) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  void ExpectAllRight() const {
    for (const auto& hammer : hammers_) EXPECT_EQ(hammer->wrong(), 0u);
  }
  /// What the disk has to hold; stopped.
  Bytes Content(uint64_t size = kDiskBytes) const {
    Bytes disk(size, 0);
    for (const auto& hammer : hammers_) {
      for (const auto& [strip, bytes] : hammer->content())
        std::copy(bytes.begin(), bytes.end(),
                  disk.begin() + static_cast<ptrdiff_t>(strip * kStrip));
    }
    return disk;
  }

 private:
  std::vector<std::unique_ptr<Hammer>> hammers_;
};

/// What a reader finds who opens the image afresh.
inline Bytes ReadDisk(const std::string& path) {
  const auto chain = OpenChain(path, true);
  EXPECT_TRUE(chain.ok()) << chain.error().ToString();
  if (!chain.ok()) return {};
  Bytes bytes((*chain)->info().size_bytes, 0);
  uint64_t done = 0;
  for (const ImageExtent& extent : (*chain)->MapForRead(0, bytes.size())) {
    const auto part = std::span(bytes).subspan(done, extent.length);
    if (extent.kind == ImageExtent::Kind::kData) {
      EXPECT_TRUE(extent.file->Read(part, extent.file_offset).ok());
    }
    done += extent.length;
  }
  return bytes;
}

/// The strict check of an image and those below it.
inline std::string Complaints(const std::string& path) {
  const auto findings = CheckDisk(path);
  if (!findings.ok()) return findings.error().ToString();
  std::string text;
  for (const Finding& finding : *findings) {
    if (finding.severity == Finding::Severity::kError) text += finding.text + "\n";
  }
  return text;
}

}  // namespace kvmbus::virtdev::live_test
