// SPDX-License-Identifier: Apache-2.0
// DiskIo on a Chain: a host queue for each of its queues, requests cut at extents, what blocks on
// a thread of its own. The chain changes only while no request is under way (IoHold).
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>

#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/chain/live_chain.h"
#include "virtdev/disk/engine/host_engine.h"
#include "virtdev/disk/engine/slow_worker.h"
#include "virtdev/disk/io_hold.h"
#include "virtdev/disk/qos/disk_qos.h"
#include "vmm/os/log.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Result;
using Op = DiskRequest::Op;

struct Counters {
  vmm::Counter reads, writes, flushes, unmaps, errors;
};

/// What the queues of a disk share. It outlives them.
struct DiskParts {
  Chain& chain;
  IoHold& hold;
  SlowWorker& slow;
  Counters& counters;
  std::shared_ptr<WriteLog> write_log;  ///< changes under the hold; null: nobody asks
};

/// A request under way: the transfers that it was cut into. Reused: what its vectors have is kept,
/// so that most requests allocate nothing here.
struct Operation {
  DiskRequest* request = nullptr;
  uint32_t gate_token = 0;
  std::vector<HostTransfer> transfers;  ///< the first `used` are this request's
  size_t used = 0;
  size_t left = 0;
  int error = 0;
};

/// Home: its loop. The slow worker answers through finished_.
class ChainQueue final : public DiskQueue, private HostCompletion, private IoHold::Waiter {
 public:
  ChainQueue(DiskParts& parts, std::unique_ptr<HostQueue> host, vmm::Loop& loop)
      : parts_(parts),
        chain_(parts.chain),
        slow_(parts.slow),
        counters_(parts.counters),
        host_(std::move(host)),
        loop_(loop) {}
  ~ChainQueue() override {
    KVMBUS_ASSERT(under_way_ == 0);
    parts_.hold.Forget(*this);
  }

  void Submit(DiskRequest& request) override {
    ++under_way_;
    request.error = 0;
    if (const auto token = parts_.hold.Enter(*this))
      Start(request, *token);
    else
      parked_.push_back(&request);
  }

  void Kick() override { host_->Kick(); }

  void Drain() override {
    for (;;) {
      for (DiskRequest* request : std::exchange(parked_, {}))
        Start(*request, parts_.hold.EnterNow());
      host_->Drain();
      Deliver();
      if (under_way_ == 0) return;
      host_->Drain();  // what a delivery has started
      std::unique_lock lock(mutex_);
      if (waiting_for_slow_ != 0)
        finished_signal_.wait(lock, [this] { return !finished_.empty(); });
    }
  }

 private:
  struct Finished {
    Operation* operation;
    int error;
    bool go_on;  // a write that waited for the image to be ready
  };

  Image& image() { return chain_.top(); }

  /// IoHold: on the thread of a task that has ended.
  void OnReleased() override {
    loop_.Post([this, alive = std::weak_ptr<bool>(alive_)] {
      if (!alive.expired()) SubmitParked();
    });
  }

  void SubmitParked() {
    for (DiskRequest* request : std::exchange(parked_, {})) {
      --under_way_;
      Submit(*request);
    }
    Kick();
  }

  void Start(DiskRequest& request, uint32_t gate_token) {
    Operation& operation = NewOperation(request, gate_token);
    if (const int error = Check(request); error != 0) return End(operation, error);
    switch (request.op) {
      case Op::kRead:
        return Read(operation);
      case Op::kWrite:
        return Write(operation);
      case Op::kFlush:
        return Flush(operation);
      case Op::kUnmap:
        counters_.unmaps.Add();
        return Slow(operation,
                    [this, &request] { return image().Unmap(request.offset, request.length); });
      case Op::kWriteZeroes:
        counters_.writes.Add();
        return Slow(operation, [this, &request] {
          auto done = image().WriteZeroes(request.offset, request.length);
          return done.ok() && request.fua ? image().Flush() : done;
        });
    }
  }

  int Check(const DiskRequest& request) const {
    const DiskInfo& info = chain_.info();
    if (request.op == Op::kFlush) return 0;
    if (request.offset > info.size_bytes || request.length > info.size_bytes - request.offset ||
        request.offset % info.logical_sector_bytes != 0 ||
        request.length % info.logical_sector_bytes != 0)
      return EINVAL;
    if (info.read_only && request.op != Op::kRead) return EROFS;
    if (request.op == Op::kRead || request.op == Op::kWrite) {
      uint64_t bytes = 0;
      for (const iovec& piece : request.iov) bytes += piece.iov_len;
      if (bytes != request.length) return EINVAL;
    }
    return 0;
  }

  Operation& NewOperation(DiskRequest& request, uint32_t gate_token) {
    if (idle_.empty()) idle_.push_back(std::make_unique<Operation>());
    Operation& operation = *idle_.back().release();
    idle_.pop_back();
    operation.request = &request;
    operation.used = 0;
    operation.error = 0;
    operation.gate_token = gate_token;
    return operation;
  }

  void Read(Operation& operation) {
    counters_.reads.Add();
    const DiskRequest& request = *operation.request;
    Cut(operation, chain_.MapForRead(request.offset, request.length), false);
    Transfer(operation);
  }

  void Write(Operation& operation) {
    DiskRequest& request = *operation.request;
    if (!image().ReadyToWrite())
      return Ask(
          operation, [this] { return image().PrepareToWrite(); }, true);
    counters_.writes.Add();
    auto extents = image().MapForWrite(request.offset, request.length);
    if (!extents.ok()) {
      KVMBUS_LOG_LIMITED("disk: {}", extents.error().ToString());
      return Complete(operation, ErrnoOf(extents.error()));
    }
    Cut(operation, *extents, true);
    Transfer(operation);
  }

  /// Splits the guest's buffer along the extents; those that read as zeroes are filled at once.
  static void Cut(Operation& operation, const std::vector<ImageExtent>& extents, bool write) {
    const std::span<const iovec> iov = operation.request->iov;
    size_t piece = 0, used = 0;
    for (const ImageExtent& extent : extents) {
      HostTransfer& transfer = NextTransfer(operation);
      transfer.write = write;
      transfer.file = extent.file;
      transfer.offset = extent.file_offset;
      uint64_t left = extent.length;
      while (left != 0 && piece < iov.size()) {
        const size_t size = std::min<uint64_t>(left, iov[piece].iov_len - used);
        auto* base = static_cast<uint8_t*>(iov[piece].iov_base) + used;
        if (extent.kind != ImageExtent::Kind::kData)
          std::memset(base, 0, size);
        else if (size != 0)
          transfer.iov.push_back({base, size});
        left -= size;
        used += size;
        if (used == iov[piece].iov_len) {
          ++piece;
          used = 0;
        }
      }
      if (transfer.iov.empty()) --operation.used;
    }
  }

  static HostTransfer& NextTransfer(Operation& operation) {
    if (operation.used == operation.transfers.size()) operation.transfers.emplace_back();
    HostTransfer& transfer = operation.transfers[operation.used++];
    transfer.iov.clear();
    transfer.done = 0;
    return transfer;
  }

  void Transfer(Operation& operation) {
    const size_t count = operation.used;
    if (count == 0) return Complete(operation, 0);
    operation.left = count;
    // All before the first is submitted, which may complete at once, and the operation with the
    // last one.
    for (size_t i = 0; i < count; ++i) {
      operation.transfers[i].completion = this;
      operation.transfers[i].owner = &operation;
    }
    for (size_t i = 0; i < count; ++i) host_->Submit(operation.transfers[i]);
  }

  void OnTransferDone(HostTransfer& transfer, int error) override {
    OnTransfer(*static_cast<Operation*>(transfer.owner), error);
  }

  void OnTransfer(Operation& operation, int error) {
    if (error != 0) operation.error = error;
    if (--operation.left != 0) return;
    const DiskRequest& request = *operation.request;
    if (operation.error == 0 && request.op == Op::kWrite) {
      image().WriteDone(request.offset, request.length);
      if (image().WantsFlush())
        slow_.Flush(
            [&hold = parts_.hold, token = parts_.hold.EnterBeside()](int) { hold.Leave(token); });
      if (request.fua) return Flush(operation);
    }
    Complete(operation, operation.error);
  }

  void Flush(Operation& operation) {
    counters_.flushes.Add();
    ++waiting_for_slow_;
    slow_.Flush([this, &operation](int error) { Finish({&operation, error, false}); });
  }

  void Slow(Operation& operation, SlowWorker::Task task) { Ask(operation, std::move(task), false); }

  void Ask(Operation& operation, SlowWorker::Task task, bool go_on) {
    ++waiting_for_slow_;
    slow_.Run(std::move(task), [this, &operation, go_on](int error) {
      Finish({&operation, error, go_on});
    });
  }

  /// On the slow worker's thread: the answer goes to the loop.
  void Finish(const Finished& finished) {
    std::lock_guard lock(mutex_);
    finished_.push_back(finished);
    finished_signal_.notify_all();
    if (finished_.size() == 1) {
      loop_.Post([this, alive = std::weak_ptr<bool>(alive_)] {
        if (!alive.expired()) Deliver();
      });
    }
  }

  void Deliver() {
    std::vector<Finished> finished;
    {
      std::lock_guard lock(mutex_);
      finished.swap(finished_);
    }
    for (const Finished& entry : finished) {
      --waiting_for_slow_;
      if (entry.go_on && entry.error == 0)
        Write(*entry.operation);
      else
        Complete(*entry.operation, entry.error);
    }
    if (!finished.empty()) host_->Kick();
  }

  void Complete(Operation& operation, int error) {
    const DiskRequest& request = *operation.request;
    // Whatever came of it: a part of it may have been written.
    if (parts_.write_log != nullptr && request.op != Op::kRead && request.op != Op::kFlush)
      parts_.write_log->Mark(request.offset, request.length);
    End(operation, error);
  }

  void End(Operation& operation, int error) {
    if (error != 0) counters_.errors.Add();
    DiskRequest& request = *operation.request;
    parts_.hold.Leave(operation.gate_token);
    Recycle(operation);
    --under_way_;
    request.error = error;
    request.completion->OnDiskComplete(request);
  }

  /// Keeps a bounded amount of memory for the next requests.
  void Recycle(Operation& operation) {
    constexpr size_t kMaxIdle = 64, kMaxTransfers = 4, kMaxPieces = 64;
    std::unique_ptr<Operation> owned(&operation);
    if (idle_.size() >= kMaxIdle) return;
    if (operation.transfers.size() > kMaxTransfers) operation.transfers = {};
    for (HostTransfer& transfer : operation.transfers) {
      if (transfer.iov.capacity() > kMaxPieces) transfer.iov = {};
    }
    idle_.push_back(std::move(owned));
  }

  DiskParts& parts_;
  Chain& chain_;
  SlowWorker& slow_;
  Counters& counters_;
  std::unique_ptr<HostQueue> host_;
  vmm::Loop& loop_;
  size_t under_way_ = 0;  // with those parked
  size_t waiting_for_slow_ = 0;
  std::vector<DiskRequest*> parked_;  // turned away by a hold
  std::vector<std::unique_ptr<Operation>> idle_;
  std::mutex mutex_;  // guards finished_
  std::condition_variable finished_signal_;
  std::vector<Finished> finished_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

class ChainDisk final : public DiskIo, private LiveChain {
 public:
  ChainDisk(std::unique_ptr<Chain> chain, bool force_threads)
      : chain_(std::move(chain)),
        engine_(MakeHostEngine(force_threads)),
        hold_(chain_->gate()),
        slow_(std::make_unique<SlowWorker>([this] { return chain_->top().Flush(); })),
        parts_{*chain_, hold_, *slow_, counters_, nullptr} {
    PublishInfo();
  }
  const DiskInfo& info() const override { return *info_.load(std::memory_order_acquire); }
  std::string_view format() const override { return chain_->top().format(); }
  Result<std::unique_ptr<DiskQueue>> OpenQueue(vmm::Loop& loop) override {
    auto host = TRY(engine_->OpenQueue(loop));
    return qos_.Wrap(std::make_unique<ChainQueue>(parts_, std::move(host), loop), loop);
  }
  Result<void> Close() override {
    slow_.reset();
    return chain_->Close();
  }
  void VisitCounters(const vmm::CounterVisitor& visit) const override {
    visit("disk_reads", counters_.reads);
    visit("disk_writes", counters_.writes);
    visit("disk_flushes", counters_.flushes);
    visit("disk_unmaps", counters_.unmaps);
    visit("disk_errors", counters_.errors);
    qos_.VisitCounters(visit);
  }
  DiskQos* qos() override { return &qos_; }
  void SetResizeListener(std::function<void()> changed) override {
    std::lock_guard lock(listener_mutex_);
    resized_ = std::move(changed);
  }
  LiveChain* live() override { return this; }

 private:
  void PublishInfo() { info_.store(&infos_.emplace_back(chain_->info())); }

  // LiveChain
  Chain& chain() override { return *chain_; }
  Result<void> Hold(const std::function<Result<void>()>& change) override {
    return hold_.Run([this, &change] {
      auto changed = change();
      if (chain_->info() != info()) PublishInfo();
      return changed;
    });
  }
  void SetWriteLog(std::shared_ptr<WriteLog> log) override { parts_.write_log = std::move(log); }
  void TellResized() override {
    std::lock_guard lock(listener_mutex_);
    if (resized_) resized_();
  }

  std::unique_ptr<Chain> chain_;
  // Who has asked may look at what he got as long as there is the disk.
  std::deque<DiskInfo> infos_;
  std::atomic<const DiskInfo*> info_{nullptr};  // the last of them; changes under the hold
  std::unique_ptr<HostEngine> engine_;
  Counters counters_;
  DiskQos qos_;
  IoHold hold_;
  std::unique_ptr<SlowWorker> slow_;
  DiskParts parts_;
  std::mutex listener_mutex_;  // guards resized_
  std::function<void()> resized_;
};

}  // namespace

std::unique_ptr<DiskIo> MakeChainDisk(std::unique_ptr<Chain> chain, bool force_threads) {
  return std::make_unique<ChainDisk>(std::move(chain), force_threads);
}

}  // namespace kvmbus::virtdev
