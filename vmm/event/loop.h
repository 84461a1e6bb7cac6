// SPDX-License-Identifier: Apache-2.0
/// \file
/// Loop: one thread's epoll loop with watched descriptors, timers and a mailbox.
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "vmm/event/blocking_budget.h"
#include "vmm/os/clock.h"
#include "vmm/os/fd.h"

namespace kvmbus::vmm {

/// Home thread: the one that calls Run(). Watch, timers and their callbacks belong to that thread;
/// Post, PostAndWait and Stop may be called from any. Callbacks must not block for long.
class Loop {
 public:
  using Task = std::function<void()>;
  using TimerId = uint64_t;  ///< 0 is never a timer

  static Result<std::unique_ptr<Loop>> Create(const Clock& clock = SystemClock());
  ~Loop();

  /// Runs until Stop().
  void Run();
  /// Makes Run() return after the callbacks that are under way. Any thread.
  void Stop();
  /// One turn: waits at most `timeout_ms` (-1: for ever), then runs what is ready. For tests.
  void RunOnce(int timeout_ms);

  /// Queues a task; runs it on the home thread, in order. Any thread.
  void Post(Task task);
  /// Post and wait until it has run. Runs at once on the home thread, or while the loop is not
  /// running.
  void PostAndWait(Task task);
  /// True on the home thread, and everywhere while no thread runs the loop.
  bool IsCurrent() const;

  /// Calls `ready` with the epoll events whenever `fd` has any of `events` (level-triggered). One
  /// watch a descriptor.
  Result<void> Watch(int fd, uint32_t events, std::function<void(uint32_t)> ready);
  /// Other events for a descriptor that is watched. Cannot fail.
  void ChangeWatch(int fd, uint32_t events);
  /// After this, `ready` is not called again, not even for an event already fetched. No-op if not
  /// watched.
  void Unwatch(int fd);

  /// Runs `task` once after `delay_ns`. Cancel is a no-op for a timer that fired.
  TimerId AddTimer(uint64_t delay_ns, Task task);
  void CancelTimer(TimerId id);

  const Clock& clock() const { return clock_; }
  /// Changes with every turn: what was read from the clock in the same one is not old. Home thread.
  uint64_t turn() const { return turn_; }
  /// For callbacks that now and then block after all. Home thread.
  BlockingBudget& blocking_budget() { return blocking_budget_; }

 private:
  struct WatchEntry {
    std::function<void(uint32_t)> ready;
  };

  Loop(Fd epoll, Fd wake, const Clock& clock);
  int TimeoutMs(int limit_ms) const;
  void RunTimers();
  void RunPosted();

  Fd epoll_;
  Fd wake_;
  const Clock& clock_;
  std::unordered_map<int, std::shared_ptr<WatchEntry>> watches_;
  std::map<std::pair<uint64_t, TimerId>, Task> timers_;  // by deadline
  std::unordered_map<TimerId, uint64_t> deadlines_;
  TimerId next_timer_ = 1;
  uint64_t turn_ = 0;
  BlockingBudget blocking_budget_;

  std::mutex mutex_;  // guards posted_
  std::vector<Task> posted_;
  std::atomic<bool> stopping_{false};
  std::atomic<std::thread::id> home_{};
};

/// A named thread that runs a Loop of its own until destroyed ("io/0").
class LoopThread {
 public:
  static Result<std::unique_ptr<LoopThread>> Start(const std::string& name);
  ~LoopThread();
  Loop& loop() { return *loop_; }

 private:
  explicit LoopThread(std::unique_ptr<Loop> loop) : loop_(std::move(loop)) {}
  std::unique_ptr<Loop> loop_;
  std::thread thread_;
};

}  // namespace kvmbus::vmm
