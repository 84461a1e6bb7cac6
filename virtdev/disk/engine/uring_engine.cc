// SPDX-License-Identifier: Apache-2.0
#include <liburing.h>

#include <algorithm>
#include <cerrno>
#include <deque>

#include "virtdev/disk/engine/host_engine.h"

namespace kvmbus::virtdev {
namespace {

constexpr unsigned kEntries = 256;
constexpr size_t kMaxPlainBytes = 1u << 30;
/// The kernel's plug holds back what one call hands over until all of it is prepared. The disk
/// waits for so many of a batch, not for all.
constexpr unsigned kPiece = 8;

/// Fewer interruptions of a thread that runs anyway; kernels before 5.19 do not know it.
constexpr unsigned kSetupFlags = IORING_SETUP_COOP_TASKRUN;

int InitialiseRing(unsigned entries, io_uring* ring) {
  const int status = ::io_uring_queue_init(entries, ring, kSetupFlags);
  return status == -EINVAL ? ::io_uring_queue_init(entries, ring, 0) : status;
}

/// One ring a queue. The loop watches the ring itself, so that what completes within Kick, as reads
/// from the page cache do, is delivered there and wakes nobody.
class UringQueue final : public HostQueue {
 public:
  explicit UringQueue(vmm::Loop& loop) : loop_(loop) {}

  ~UringQueue() override {
    KVMBUS_ASSERT(under_way_ == 0 && waiting_.empty());
    if (!initialised_) return;
    loop_.Unwatch(ring_.ring_fd);
    ::io_uring_queue_exit(&ring_);
  }

  vmm::Result<void> Initialise() {
    const int status = InitialiseRing(kEntries, &ring_);
    if (status < 0) return vmm::Error::FromErrno(-status, "io_uring");
    initialised_ = true;
    return loop_.Watch(ring_.ring_fd, EPOLLIN, [this](uint32_t) { Reap(); });
  }

  void Submit(HostTransfer& transfer) override {
    if (transfer.file->fd() < 0) return Done(transfer, TransferNow(transfer, 0));
    waiting_.push_back(&transfer);
    Fill();
    const bool waits_for_disk = !transfer.file->alignment().is_none();  // not for the page cache
    if (waits_for_disk && ::io_uring_sq_ready(&ring_) >= kPiece) Enter();
  }

  void Kick() override {
    Enter();
    if (!reaping_ && ::io_uring_cq_ready(&ring_) != 0) Reap();
  }

  void Drain() override {
    do {
      DrainRing();
      if (threads_ != nullptr) threads_->Drain();
    } while (under_way_ != 0 || !waiting_.empty());  // what a delivery has started
  }

 private:
  void DrainRing() {
    while (under_way_ != 0 || !waiting_.empty()) {
      Fill();
      const int status = ::io_uring_submit_and_wait(&ring_, 1);
      if (status >= 0 || status == -EBUSY || status == -EAGAIN) Reap();
    }
  }

  void Fill() {
    while (!waiting_.empty() && under_way_ < kEntries) {
      io_uring_sqe* entry = ::io_uring_get_sqe(&ring_);
      if (entry == nullptr) return Enter();  // more room after the completions
      HostTransfer* transfer = waiting_.front();
      waiting_.pop_front();
      Prepare(entry, *transfer);
      ::io_uring_sqe_set_data(entry, transfer);
      ++under_way_;
    }
  }

  static void Prepare(io_uring_sqe* entry, HostTransfer& transfer) {
    const int fd = transfer.file->fd();
    const std::span<iovec> iov = transfer.rest();
    // The kernel takes at most UIO_MAXIOV pieces and a bit less than 2 GiB; the rest is a short
    // transfer that goes on.
    const auto pieces = static_cast<unsigned>(std::min<size_t>(iov.size(), UIO_MAXIOV));
    const bool plain = pieces == 1 && iov[0].iov_len <= kMaxPlainBytes;
    const auto bytes = static_cast<unsigned>(iov[0].iov_len);
    if (plain && transfer.write)
      ::io_uring_prep_write(entry, fd, iov[0].iov_base, bytes, transfer.offset);
    else if (plain)
      ::io_uring_prep_read(entry, fd, iov[0].iov_base, bytes, transfer.offset);
    else if (transfer.write)
      ::io_uring_prep_writev(entry, fd, iov.data(), pieces, transfer.offset);
    else
      ::io_uring_prep_readv(entry, fd, iov.data(), pieces, transfer.offset);
  }

  /// Hands what is in the ring to the kernel.
  void Enter() {
    while (::io_uring_sq_ready(&ring_) != 0) {
      const int status = ::io_uring_submit(&ring_);
      if (status > 0 || status == -EINTR) continue;
      // The kernel is short of memory, or wants its completions seen first. With some under way
      // the next completion comes back here; else the loop does.
      if (under_way_ == ::io_uring_sq_ready(&ring_) && !retrying_) {
        retrying_ = true;
        loop_.Post([this, alive = std::weak_ptr<bool>(alive_)] {
          if (alive.expired()) return;
          retrying_ = false;
          Kick();
        });
      }
      return;
    }
  }

  /// Delivers what had completed when it began. The rest, if its deliveries bring more, is for the
  /// loop, which has others to serve.
  void Reap() {
    reaping_ = true;
    for (unsigned left = ::io_uring_cq_ready(&ring_); left != 0; --left) {
      io_uring_cqe* completion = nullptr;
      if (::io_uring_peek_cqe(&ring_, &completion) != 0) break;
      auto* transfer = static_cast<HostTransfer*>(::io_uring_cqe_get_data(completion));
      const int result = completion->res;
      ::io_uring_cqe_seen(&ring_, completion);
      --under_way_;
      Finish(*transfer, result);
    }
    Fill();
    Enter();
    reaping_ = false;
  }

  void Finish(HostTransfer& transfer, int result) {
    if (result == -EAGAIN) return Wait(transfer);
    if (result == -EINTR) return waiting_.push_front(&transfer);
    if (result < 0) return Done(transfer, -result);
    transfer.Advance(static_cast<size_t>(result));
    if (transfer.rest().empty()) return Done(transfer, 0);
    if (result == 0) return Done(transfer, transfer.write ? ENOSPC : EIO);  // past the file's end
    waiting_.push_front(&transfer);
  }

  /// The kernel does not wait for this file, or has no memory for the waiting: it could say so for
  /// ever. A thread waits.
  void Wait(HostTransfer& transfer) {
    if (threads_ == nullptr) {
      auto threads = MakeThreadEngine();
      auto queue = threads->OpenPlainQueue(loop_);
      if (!queue.ok()) return Done(transfer, EAGAIN);
      thread_engine_ = std::move(threads);
      threads_ = std::move(*queue);
    }
    threads_->Submit(transfer);
  }

  static void Done(HostTransfer& transfer, int error) {
    transfer.completion->OnTransferDone(transfer, error);
  }

  vmm::Loop& loop_;
  io_uring ring_{};
  bool initialised_ = false;
  std::deque<HostTransfer*> waiting_;  // not yet in the ring
  unsigned under_way_ = 0;             // in the ring, submitted or not
  bool retrying_ = false;
  bool reaping_ = false;                       // a delivery's Kick does not nest
  std::unique_ptr<HostEngine> thread_engine_;  // once the ring had no use for a transfer
  std::unique_ptr<HostQueue> threads_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

class UringEngine final : public HostEngine {
 public:
  std::string_view name() const override { return "io_uring"; }
  vmm::Result<std::unique_ptr<HostQueue>> OpenPlainQueue(vmm::Loop& loop) override {
    auto queue = std::make_unique<UringQueue>(loop);
    TRY_VOID(queue->Initialise());
    return queue;
  }
};

}  // namespace

std::unique_ptr<HostEngine> MakeUringEngine() {
  // A sysctl or seccomp may forbid it: a small ring shows.
  io_uring probe{};
  if (InitialiseRing(1, &probe) < 0) return nullptr;
  ::io_uring_queue_exit(&probe);
  return std::make_unique<UringEngine>();
}

}  // namespace kvmbus::virtdev
