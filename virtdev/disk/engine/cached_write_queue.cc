// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/engine/cached_write_queue.h"

#include <cerrno>
#include <deque>
#include <utility>

namespace kvmbus::virtdev {
namespace {

/// What a write takes that does not block, with a margin: the system call, and the copying. Of ext4
/// with large folios a scattered one takes 50 us and more, for each block of the folio is looked
/// at.
uint64_t FairNs(size_t bytes) { return 200'000 + bytes / 2; }

class CachedWriteQueue final : public HostQueue {
 public:
  CachedWriteQueue(std::unique_ptr<HostQueue> below, vmm::Loop& loop)
      : below_(std::move(below)), loop_(loop) {}
  ~CachedWriteQueue() override { KVMBUS_ASSERT(waiting_.empty()); }

  void Submit(HostTransfer& transfer) override {
    const bool is_cached = transfer.file->fd() >= 0 && transfer.file->alignment().is_none();
    if (!transfer.write || !is_cached) return below_->Submit(transfer);
    waiting_.push_back(&transfer);
  }

  void Kick() override {
    below_->Kick();  // what waits for a disk waits meanwhile
    if (!writing_) WriteThose(waiting_.size());
  }

  void Drain() override {
    do {
      WriteThose(waiting_.size());
      below_->Drain();
    } while (!waiting_.empty());
  }

 private:
  /// The first `count`. What their completions add is for the loop, which has others to serve.
  void WriteThose(size_t count) {
    writing_ = true;
    bool passed_on = false;
    for (; count != 0; --count) {
      HostTransfer& transfer = *waiting_.front();
      waiting_.pop_front();
      if (!WriteHere(transfer)) {
        below_->Submit(transfer);
        passed_on = true;
      }
    }
    writing_ = false;
    if (passed_on) below_->Kick();
    if (!waiting_.empty()) GoOnLater();
  }

  /// False: the transfer, or the rest of it, is for the queue below.
  bool WriteHere(HostTransfer& transfer) {
    if (transfer.file != file_) {
      file_ = transfer.file;
      can_tell_ = true;
    }
    if (can_tell_) {
      const int error = TransferNow(transfer, RWF_NOWAIT);
      can_tell_ = error != EOPNOTSUPP;
      if (error == EAGAIN) return false;
      if (can_tell_) return Done(transfer, error);
    }
    vmm::BlockingBudget& budget = loop_.blocking_budget();
    const uint64_t start = loop_.clock().MonotonicNs();
    if (!budget.Allows(start)) return false;
    const uint64_t offset = transfer.offset;
    const int error = TransferNow(transfer, 0);
    const uint64_t now = loop_.clock().MonotonicNs();
    budget.Took(now, now - start, FairNs(transfer.offset - offset));
    return Done(transfer, error);
  }

  static bool Done(HostTransfer& transfer, int error) {
    transfer.completion->OnTransferDone(transfer, error);
    return true;
  }

  void GoOnLater() {
    if (std::exchange(goes_on_, true)) return;
    loop_.Post([this, alive = std::weak_ptr<bool>(alive_)] {
      if (alive.expired()) return;
      goes_on_ = false;
      Kick();
    });
  }

  std::unique_ptr<HostQueue> below_;
  vmm::Loop& loop_;
  std::deque<HostTransfer*> waiting_;  // for Kick
  bool writing_ = false;               // a completion's Kick does not nest
  bool goes_on_ = false;               // the loop will call Kick
  const BlockFile* file_ = nullptr;    // that of the last write
  bool can_tell_ = true;               // its file system tells of blocking beforehand
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace

std::unique_ptr<HostQueue> MakeCachedWriteQueue(std::unique_ptr<HostQueue> below, vmm::Loop& loop) {
  return std::make_unique<CachedWriteQueue>(std::move(below), loop);
}

}  // namespace kvmbus::virtdev
