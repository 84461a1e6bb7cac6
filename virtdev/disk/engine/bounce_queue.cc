// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/engine/bounce_queue.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>

#include "virtdev/disk/engine/direct_io.h"

namespace kvmbus::virtdev {
namespace {

constexpr size_t kBufferBytes = 256u << 10;
constexpr size_t kMaxBuffers = 16;

bool Fits(const HostTransfer& transfer, const IoAlignment& alignment) {
  uintptr_t memory = 0, bytes = 0;
  for (const iovec& piece : transfer.iov) {
    memory |= reinterpret_cast<uintptr_t>(piece.iov_base);
    bytes |= piece.iov_len;
  }
  return memory % alignment.memory == 0 && bytes % alignment.bytes == 0;
}

/// One buffer, and the transfer that goes through it piece by piece.
class Bounce {
 public:
  HostTransfer inner;
  HostTransfer* outer = nullptr;

  void Begin(HostTransfer& transfer) {
    outer = &transfer;
    inner.file = transfer.file;
    inner.write = transfer.write;
    inner.offset = transfer.offset;
    piece_ = in_piece_ = 0;
    left_ = 0;
    for (const iovec& piece : transfer.iov) left_ += piece.iov_len;
  }
  bool IsOver() const { return left_ == 0; }

  /// `inner` is the next piece.
  void Load() {
    const std::span<uint8_t> bytes = buffer_.span().first(std::min(left_, kBufferBytes));
    if (inner.write) Copy(bytes);
    inner.iov.assign(1, {bytes.data(), bytes.size()});
    inner.done = 0;
    loaded_ = bytes.size();
  }
  /// `inner` is done, and has moved its own offset on.
  void Unload() {
    if (!inner.write) Copy(buffer_.span().first(loaded_));
    left_ -= loaded_;
  }

 private:
  /// Between the buffer and what comes next of the outer transfer's memory.
  void Copy(std::span<uint8_t> bytes) {
    while (!bytes.empty()) {
      const iovec& piece = outer->iov[piece_];
      const size_t size = std::min(bytes.size(), piece.iov_len - in_piece_);
      uint8_t* memory = static_cast<uint8_t*>(piece.iov_base) + in_piece_;
      if (inner.write)
        std::memcpy(bytes.data(), memory, size);
      else
        std::memcpy(memory, bytes.data(), size);
      bytes = bytes.subspan(size);
      in_piece_ += size;
      if (in_piece_ == piece.iov_len) {
        ++piece_;
        in_piece_ = 0;
      }
    }
  }

  AlignedBuffer buffer_{kBufferBytes};
  size_t piece_ = 0, in_piece_ = 0;  // how far Copy is
  size_t left_ = 0, loaded_ = 0;
};

class BounceQueue final : public HostQueue, private HostCompletion {
 public:
  explicit BounceQueue(std::unique_ptr<HostQueue> below) : below_(std::move(below)) {}
  ~BounceQueue() override { KVMBUS_ASSERT(waiting_.empty() && idle_.size() == bounces_.size()); }

  void Submit(HostTransfer& transfer) override {
    const IoAlignment& alignment = transfer.file->alignment();
    if (alignment.is_none() || Fits(transfer, alignment)) return below_->Submit(transfer);
    waiting_.push_back(&transfer);
    StartWaiting();
  }
  void Kick() override { below_->Kick(); }
  void Drain() override { below_->Drain(); }  // each completion submits what waits

 private:
  void StartWaiting() {
    while (!waiting_.empty()) {
      if (idle_.empty() && bounces_.size() == kMaxBuffers) return;
      if (idle_.empty()) AddBounce();
      Bounce& bounce = *idle_.back();
      idle_.pop_back();
      bounce.Begin(*waiting_.front());
      waiting_.pop_front();
      bounce.Load();
      below_->Submit(bounce.inner);
    }
  }

  void AddBounce() {
    bounces_.push_back(std::make_unique<Bounce>());
    Bounce& bounce = *bounces_.back();
    bounce.inner.completion = this;
    bounce.inner.owner = &bounce;
    idle_.push_back(&bounce);
  }

  void OnTransferDone(HostTransfer& transfer, int error) override {
    Bounce& bounce = *static_cast<Bounce*>(transfer.owner);
    if (error == 0) bounce.Unload();
    // Nobody else would kick what is submitted from here.
    if (error == 0 && !bounce.IsOver()) {
      bounce.Load();
      below_->Submit(bounce.inner);
      return below_->Kick();
    }
    HostTransfer& outer = *bounce.outer;
    idle_.push_back(&bounce);
    StartWaiting();
    below_->Kick();
    outer.completion->OnTransferDone(outer, error);
  }

  std::unique_ptr<HostQueue> below_;
  std::vector<std::unique_ptr<Bounce>> bounces_;
  std::vector<Bounce*> idle_;
  std::deque<HostTransfer*> waiting_;  // for a buffer
};

}  // namespace

std::unique_ptr<HostQueue> MakeBounceQueue(std::unique_ptr<HostQueue> below) {
  return std::make_unique<BounceQueue>(std::move(below));
}

}  // namespace kvmbus::virtdev
