// SPDX-License-Identifier: Apache-2.0
/// \file
/// FakeDisk: a DiskIo in memory that fails, delays and remembers as a test tells it.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "virtdev/disk/disk_io.h"

namespace kvmbus::tests {

/// Any thread; the content and the book-keeping are under one lock.
class FakeDisk : public virtdev::DiskIo {
 public:
  using Op = virtdev::DiskRequest::Op;

  /// When a request completes.
  enum class Timing {
    kInline,  ///< inside Submit
    kInKick,
    kPosted,  ///< on a later turn of the loop, after a Kick
    kHeld,    ///< when the test calls Release on the queue's thread, or the device drains
  };
  struct Seen {
    Op op;
    uint64_t offset;
    uint64_t length;
    bool fua;
    bool operator==(const Seen&) const = default;
  };

  explicit FakeDisk(virtdev::DiskInfo info) : info_(info), content_(info.size_bytes) {}
  static virtdev::DiskInfo DefaultInfo(uint64_t size_bytes = 1 << 20) {
    virtdev::DiskInfo info;
    info.size_bytes = size_bytes;
    info.can_unmap = true;
    info.unmapped_reads_zero = true;
    for (uint8_t i = 0; i < 16; ++i) info.disk_id.bytes[i] = static_cast<uint8_t>(0xa0 + i);
    return info;
  }
  ~FakeDisk() override { KVMBUS_ASSERT(open_queues_ == 0); }

  // What the test does.
  std::vector<uint8_t>& content() { return content_; }
  virtdev::DiskInfo& mutable_info() { return info_; }
  void Resize(uint64_t bytes) {
    {
      std::lock_guard lock(mutex_);
      info_.size_bytes = bytes;
      content_.resize(bytes);
    }
    std::lock_guard lock(listener_mutex_);
    if (resized_) resized_();
  }
  void set_timing(Timing timing) {
    std::lock_guard lock(mutex_);
    timing_ = timing;
  }
  /// The next `times` requests of this kind fail with the errno and change nothing.
  void InjectError(Op op, int error, unsigned times = 1) {
    std::lock_guard lock(mutex_);
    faults_.push_back({op, error, times});
  }
  void FailOpenQueue(bool fail) {
    std::lock_guard lock(mutex_);
    fail_open_ = fail;
  }
  /// What was executed, in order; forgets it.
  std::vector<Seen> TakeSeen() {
    std::lock_guard lock(mutex_);
    return std::exchange(seen_, {});
  }
  unsigned open_queues() const {
    std::lock_guard lock(mutex_);
    return open_queues_;
  }
  unsigned queues_opened() const {
    std::lock_guard lock(mutex_);
    return queues_opened_;
  }
  bool closed() const {
    std::lock_guard lock(mutex_);
    return closed_;
  }
  /// Completes what is held on every queue, newest first. On the queues' thread.
  void Release();
  size_t held() const;

  // DiskIo
  const virtdev::DiskInfo& info() const override { return info_; }
  std::string_view format() const override { return "fake"; }
  vmm::Result<std::unique_ptr<virtdev::DiskQueue>> OpenQueue(vmm::Loop& loop) override;
  vmm::Result<void> Close() override {
    std::lock_guard lock(mutex_);
    KVMBUS_ASSERT(open_queues_ == 0 && !closed_);
    closed_ = true;
    return {};
  }
  void SetResizeListener(std::function<void()> changed) override {
    std::lock_guard lock(listener_mutex_);
    resized_ = std::move(changed);
  }

 private:
  class Queue;
  struct Fault {
    Op op;
    int error;
    unsigned times;
  };

  int Execute(const virtdev::DiskRequest& request);
  int TakeFault(Op op);

  virtdev::DiskInfo info_;
  mutable std::mutex mutex_;  // guards all below
  std::vector<uint8_t> content_;
  Timing timing_ = Timing::kInline;
  std::vector<Fault> faults_;
  std::vector<Seen> seen_;
  std::vector<Queue*> queues_;
  unsigned open_queues_ = 0;
  unsigned queues_opened_ = 0;
  bool fail_open_ = false;
  bool closed_ = false;

  std::mutex listener_mutex_;  // guards resized_
  std::function<void()> resized_;
};

class FakeDisk::Queue final : public virtdev::DiskQueue {
 public:
  Queue(FakeDisk& disk, vmm::Loop& loop) : disk_(disk), loop_(loop) {}
  ~Queue() override {
    KVMBUS_ASSERT(loop_.IsCurrent() && submitted_.empty() && started_.empty());
    *alive_ = false;
    std::lock_guard lock(disk_.mutex_);
    --disk_.open_queues_;
    std::erase(disk_.queues_, this);
  }

  void Submit(virtdev::DiskRequest& request) override {
    KVMBUS_ASSERT(loop_.IsCurrent());
    Timing timing;
    {
      std::lock_guard lock(disk_.mutex_);
      timing = disk_.timing_;
    }
    if (timing == Timing::kInline) {
      Finish(request);
    } else {
      submitted_.push_back(&request);
    }
  }

  void Kick() override {
    KVMBUS_ASSERT(loop_.IsCurrent());
    if (submitted_.empty()) return;
    started_.insert(started_.end(), submitted_.begin(), submitted_.end());
    submitted_.clear();
    std::unique_lock lock(disk_.mutex_);
    if (disk_.timing_ == Timing::kInKick) {
      lock.unlock();
      return FinishStarted();
    }
    if (disk_.timing_ != Timing::kPosted) return;
    loop_.Post([this, alive = alive_] {
      if (*alive) FinishStarted();
    });
  }

  void Drain() override {
    KVMBUS_ASSERT(loop_.IsCurrent());
    while (!submitted_.empty() || !started_.empty()) {
      started_.insert(started_.end(), submitted_.begin(), submitted_.end());
      submitted_.clear();
      FinishStarted();
    }
  }

  /// Newest first: nobody may rely on the order.
  void FinishStarted() {
    std::deque<virtdev::DiskRequest*> batch;
    batch.swap(started_);
    while (!batch.empty()) {
      virtdev::DiskRequest* request = batch.back();
      batch.pop_back();
      Finish(*request);
    }
  }
  size_t started() const { return started_.size(); }

 private:
  void Finish(virtdev::DiskRequest& request) {
    request.error = disk_.Execute(request);
    request.completion->OnDiskComplete(request);
  }

  FakeDisk& disk_;
  vmm::Loop& loop_;
  std::deque<virtdev::DiskRequest*> submitted_;
  std::deque<virtdev::DiskRequest*> started_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

inline vmm::Result<std::unique_ptr<virtdev::DiskQueue>> FakeDisk::OpenQueue(vmm::Loop& loop) {
  std::lock_guard lock(mutex_);
  KVMBUS_ASSERT(!closed_);
  if (fail_open_) return vmm::Error(vmm::Code::kResourceExhausted, "no queue today");
  auto queue = std::make_unique<Queue>(*this, loop);
  ++open_queues_;
  ++queues_opened_;
  queues_.push_back(queue.get());
  return std::unique_ptr<virtdev::DiskQueue>(std::move(queue));
}

inline void FakeDisk::Release() {
  std::vector<Queue*> queues;
  {
    std::lock_guard lock(mutex_);
    queues = queues_;
  }
  for (Queue* queue : queues) queue->FinishStarted();
}

inline size_t FakeDisk::held() const {
  std::lock_guard lock(mutex_);
  size_t count = 0;
  for (const Queue* queue : queues_) count += queue->started();
  return count;
}

inline int FakeDisk::TakeFault(Op op) {
  for (auto fault = faults_.begin(); fault != faults_.end(); ++fault) {
    if (fault->op != op) continue;
    const int error = fault->error;
    if (--fault->times == 0) faults_.erase(fault);
    return error;
  }
  return 0;
}

inline int FakeDisk::Execute(const virtdev::DiskRequest& request) {
  std::lock_guard lock(mutex_);
  seen_.push_back({request.op, request.offset, request.length, request.fua});
  if (const int error = TakeFault(request.op); error != 0) return error;
  const uint64_t sector = info_.logical_sector_bytes;
  // A front end that asks for what is not on the disk has a bug.
  KVMBUS_ASSERT(request.offset <= content_.size() &&
                request.length <= content_.size() - request.offset);
  KVMBUS_ASSERT(request.offset % sector == 0 && request.length % sector == 0);
  uint8_t* at = content_.data() + request.offset;
  if (request.op == Op::kUnmap || request.op == Op::kWriteZeroes) {
    KVMBUS_ASSERT(!info_.read_only);
    std::fill_n(at, request.length, uint8_t{0});
    return 0;
  }
  if (request.op == Op::kFlush) return 0;
  uint64_t total = 0;
  for (const iovec& piece : request.iov) {
    KVMBUS_ASSERT(piece.iov_len <= request.length - total);
    if (request.op == Op::kRead) {
      std::memcpy(piece.iov_base, at + total, piece.iov_len);
    } else {
      KVMBUS_ASSERT(!info_.read_only);
      std::memcpy(at + total, piece.iov_base, piece.iov_len);
    }
    total += piece.iov_len;
  }
  KVMBUS_ASSERT(total == request.length);
  return 0;
}

}  // namespace kvmbus::tests
