// SPDX-License-Identifier: Apache-2.0
// Writes to the page cache that a queue makes itself, on a file system that is made to tell of
// blocking or not to, and on a clock that is made to stand still or to run.
#include "virtdev/disk/engine/cached_write_queue.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <functional>
#include <utility>

namespace kvmbus::virtdev {
namespace {

constexpr size_t kBytes = 4096;
constexpr uint64_t kLongNs = 50'000'000;

/// What pwritev2 does: the real thing, but for RWF_NOWAIT, which file systems differ in.
struct FileSystem {
  enum class NoWait { kUnsupported, kWrites, kWritesHalf, kWouldWait };
  // Other tests' threads write too.
  static inline std::atomic<NoWait> nowait = NoWait::kUnsupported;
  static inline std::atomic<size_t> calls = 0;
};

/// Each look at it takes `step_ns`.
class RunningClock final : public vmm::Clock {
 public:
  uint64_t MonotonicNs() const override { return now_ns += step_ns; }
  uint64_t RealtimeNs() const override { return 0; }
  mutable uint64_t now_ns = 1'000'000'000;
  uint64_t step_ns = 0;
};

/// Transfers at Drain or the test's word.
class BelowQueue final : public HostQueue {
 public:
  void Submit(HostTransfer& transfer) override { submitted.push_back(&transfer); }
  void Kick() override { ++kicks; }
  void Drain() override {
    for (HostTransfer* transfer : std::exchange(submitted, {}))
      transfer->completion->OnTransferDone(*transfer, TransferNow(*transfer, 0));
  }
  std::vector<HostTransfer*> submitted;
  size_t kicks = 0;
};

class CachedWriteTest : public testing::Test, public HostCompletion {
 protected:
  CachedWriteTest() {
    FileSystem::nowait = FileSystem::NoWait::kUnsupported;
    FileSystem::calls = 0;
    char path[] = "/tmp/cached-write-test-XXXXXX";
    const vmm::Fd made(::mkstemp(path));
    EXPECT_EQ(::ftruncate(made.get(), 1 << 20), 0);
    file_ = OpenBlockFile(path, false).value();
    ::unlink(path);
    auto below = std::make_unique<BelowQueue>();
    below_ = below.get();
    queue_ = MakeCachedWriteQueue(std::move(below), *loop_);
    for (size_t i = 0; i < std::size(transfers_); ++i) {
      memory_[i].assign(kBytes, static_cast<uint8_t>('a' + i));
      Prepare(i);
    }
  }
  ~CachedWriteTest() override { queue_->Drain(); }

  void OnTransferDone(HostTransfer& transfer, int error) override {
    errors_.push_back(error);
    if (on_done_) on_done_(transfer);
  }

  void Prepare(size_t i) {
    transfers_[i].file = file_.get();
    transfers_[i].write = true;
    transfers_[i].offset = i * kBytes;
    transfers_[i].iov = {{memory_[i].data(), kBytes / 2},
                         {memory_[i].data() + kBytes / 2, kBytes / 2}};
    transfers_[i].done = 0;
    transfers_[i].completion = this;
  }
  void Submit(size_t first, size_t count) {
    for (size_t i = first; i < first + count; ++i) queue_->Submit(transfers_[i]);
  }
  bool IsWritten(size_t i) {
    std::vector<uint8_t> read(kBytes);
    EXPECT_TRUE(file_->Read(read, i * kBytes).ok());
    return read == memory_[i];
  }

  RunningClock clock_;
  std::unique_ptr<vmm::Loop> loop_ = vmm::Loop::Create(clock_).value();
  std::unique_ptr<BlockFile> file_;
  std::unique_ptr<HostQueue> queue_;
  BelowQueue* below_ = nullptr;
  std::vector<uint8_t> memory_[4];
  HostTransfer transfers_[4];
  std::vector<int> errors_;
  std::function<void(HostTransfer&)> on_done_;
};

TEST_F(CachedWriteTest, KickMakesTheWritesAndPassesTheRestOn) {
  transfers_[1].write = false;
  Submit(0, 3);
  EXPECT_TRUE(errors_.empty()) << "not before Kick: a completion's Submit would nest";
  EXPECT_EQ(below_->submitted, std::vector<HostTransfer*>{&transfers_[1]});
  queue_->Kick();
  EXPECT_EQ(errors_, (std::vector<int>{0, 0}));
  EXPECT_TRUE(IsWritten(0) && IsWritten(2));
  EXPECT_EQ(below_->kicks, 1u);
  EXPECT_EQ(FileSystem::calls, 3u) << "that the file system cannot tell is asked once";
}

TEST_F(CachedWriteTest, AWriteThatFailsIsDoneWithItsError) {
  transfers_[0].iov = {{nullptr, kBytes}};
  Submit(0, 2);
  queue_->Kick();
  EXPECT_EQ(errors_, (std::vector<int>{EFAULT, 0}));
  EXPECT_TRUE(IsWritten(1));
}

TEST_F(CachedWriteTest, AfterALongWaitTheOthersAreForTheQueueBelow) {
  Submit(0, 1);
  clock_.step_ns = kLongNs;
  queue_->Kick();
  EXPECT_EQ(errors_.size(), 1u) << "that it would take long was not known";
  clock_.step_ns = 0;
  Submit(1, 1);
  queue_->Kick();
  EXPECT_EQ(errors_.size(), 1u);
  EXPECT_EQ(below_->submitted, std::vector<HostTransfer*>{&transfers_[1]});
  EXPECT_EQ(below_->kicks, 3u) << "also after the transfer has come to it";
  below_->Drain();
  EXPECT_TRUE(IsWritten(1));
  clock_.now_ns += 100 * kLongNs;
  Submit(2, 1);
  queue_->Kick();
  EXPECT_EQ(errors_.size(), 3u);
  EXPECT_TRUE(IsWritten(2));
}

TEST_F(CachedWriteTest, WhereTheFileSystemTellsItIsBelieved) {
  clock_.step_ns = kLongNs;  // which does not count then
  FileSystem::nowait = FileSystem::NoWait::kWrites;
  Submit(0, 2);
  queue_->Kick();
  EXPECT_EQ(errors_.size(), 2u);
  EXPECT_TRUE(IsWritten(0) && IsWritten(1));
  FileSystem::nowait = FileSystem::NoWait::kWouldWait;
  Submit(2, 1);
  queue_->Kick();
  EXPECT_EQ(errors_.size(), 2u);
  EXPECT_EQ(below_->submitted, std::vector<HostTransfer*>{&transfers_[2]});
}

TEST_F(CachedWriteTest, TheQueueBelowWritesWhatIsLeftOfAPart) {
  FileSystem::nowait = FileSystem::NoWait::kWritesHalf;
  on_done_ = [this](HostTransfer&) { EXPECT_TRUE(IsWritten(0)); };
  Submit(0, 1);
  queue_->Kick();
  EXPECT_TRUE(errors_.empty());
  ASSERT_EQ(below_->submitted.size(), 1u);
  EXPECT_EQ(transfers_[0].offset, kBytes / 2);
  below_->Drain();
  EXPECT_EQ(errors_, std::vector<int>{0});
}

/// A guest that answers each completion with the next request must not keep the loop for itself.
TEST_F(CachedWriteTest, WhatCompletionsSubmitIsForTheLoopsNextTurn) {
  size_t rounds = 0;
  on_done_ = [this, &rounds](HostTransfer& transfer) {
    if (++rounds == 100) on_done_ = nullptr;
    Prepare(static_cast<size_t>(&transfer - transfers_));
    queue_->Submit(transfer);
    queue_->Kick();
  };
  Submit(0, 2);
  queue_->Kick();
  EXPECT_EQ(errors_.size(), 2u);
  loop_->RunOnce(0);
  EXPECT_EQ(errors_.size(), 4u);
  queue_->Drain();
  EXPECT_EQ(errors_.size(), 102u);
}

}  // namespace
}  // namespace kvmbus::virtdev

/// Comes before libc's own, which it calls.
extern "C" ssize_t pwritev2(int fd, const iovec* iov, int count, off_t offset, int flags) {
  using kvmbus::virtdev::FileSystem;
  using NoWait = FileSystem::NoWait;
  static const auto write = reinterpret_cast<ssize_t (*)(int, const iovec*, int, off_t, int)>(
      ::dlsym(RTLD_NEXT, "pwritev2"));
  ++FileSystem::calls;
  if (flags == 0 || FileSystem::nowait == NoWait::kWrites) return write(fd, iov, count, offset, 0);
  const bool half = FileSystem::nowait == NoWait::kWritesHalf && offset == 0;
  if (half) return write(fd, iov, 1, offset, 0);
  errno = FileSystem::nowait == NoWait::kUnsupported ? EOPNOTSUPP : EAGAIN;
  return -1;
}
