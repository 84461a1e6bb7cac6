// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "virtdev/disk/engine/host_engine.h"
#include "vmm/os/thread.h"

namespace kvmbus::virtdev {
namespace {

constexpr unsigned kThreads = 4;

/// A few threads that block in preadv and pwritev for all queues of a disk. Bounded by what the
/// guests have under way.
class ThreadPool {
 public:
  ThreadPool() {
    for (unsigned i = 0; i < kThreads; ++i) {
      threads_.emplace_back([this, i] {
        vmm::NameThisThread(fmt::format("work/{}", i));
        Work();
      });
    }
  }
  ~ThreadPool() {
    {
      std::lock_guard lock(mutex_);
      quit_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  void Run(std::function<void()> task) {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    changed_.notify_one();
  }

 private:
  void Work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return quit_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool quit_ = false;
  std::vector<std::thread> threads_;
};

class ThreadQueue final : public HostQueue {
 public:
  ThreadQueue(ThreadPool& pool, vmm::Loop& loop) : pool_(pool), loop_(loop) {}
  ~ThreadQueue() override { KVMBUS_ASSERT(under_way_ == 0); }

  void Submit(HostTransfer& transfer) override {
    ++under_way_;
    pool_.Run([this, &transfer] {
      const int error = TransferNow(transfer, 0);
      std::lock_guard lock(mutex_);
      finished_.push_back({&transfer, error});
      if (finished_.size() == 1) {
        loop_.Post([this, alive = std::weak_ptr<bool>(alive_)] {
          if (!alive.expired()) Deliver();
        });
      }
      finished_signal_.notify_all();  // under the lock: Drain may be the last to need us
    });
  }

  void Kick() override {}

  void Drain() override {
    for (;;) {
      Deliver();
      if (under_way_ == 0) return;
      std::unique_lock lock(mutex_);
      finished_signal_.wait(lock, [this] { return !finished_.empty(); });
    }
  }

 private:
  struct Finished {
    HostTransfer* transfer;
    int error;
  };

  void Deliver() {
    std::vector<Finished> finished;
    {
      std::lock_guard lock(mutex_);
      finished.swap(finished_);
    }
    for (const Finished& entry : finished) {
      --under_way_;
      entry.transfer->completion->OnTransferDone(*entry.transfer, entry.error);
    }
  }

  ThreadPool& pool_;
  vmm::Loop& loop_;
  size_t under_way_ = 0;
  std::mutex mutex_;  // guards finished_
  std::condition_variable finished_signal_;
  std::vector<Finished> finished_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

class ThreadEngine final : public HostEngine {
 public:
  std::string_view name() const override { return "threads"; }
  vmm::Result<std::unique_ptr<HostQueue>> OpenPlainQueue(vmm::Loop& loop) override {
    return std::make_unique<ThreadQueue>(pool_, loop);
  }

 private:
  ThreadPool pool_;
};

}  // namespace

std::unique_ptr<HostEngine> MakeThreadEngine() { return std::make_unique<ThreadEngine>(); }

}  // namespace kvmbus::virtdev
