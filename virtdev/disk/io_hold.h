// SPDX-License-Identifier: Apache-2.0
/// \file
/// IoHold: stops a disk's requests for a moment, so that what all of them use can be changed.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <set>

#include "virtdev/disk/io_gate.h"
#include "vmm/result/result.h"

namespace kvmbus::virtdev {

/// Requests enter and leave; while a task wants the disk for itself, new ones are turned away and
/// wait. The price of a request is the load of a flag that hardly ever changes, on its way in and
/// on its way out: who enters counts itself in the gate before it looks at the flag, the task sets
/// the flag before it looks at the count, so that one of them sees the other.
class IoHold {
 public:
  /// A queue that has requests to enter.
  class Waiter {
   public:
    virtual ~Waiter() = default;
    /// The queue's requests may try again. Runs on the task's thread: post it to the queue's own.
    virtual void OnReleased() = 0;
  };

  /// All who use `gate` come through here, or are on the thread that calls Run.
  explicit IoHold(IoGate& gate) : gate_(gate) {}

  /// Any thread. The value is for Leave; nullopt: turned away, and `waiter` is told when to try
  /// again.
  std::optional<uint32_t> Enter(Waiter& waiter) {
    for (;;) {
      const uint32_t token = gate_.Enter();
      if (!closed_.load()) return token;
      Leave(token);
      if (Await(waiter)) return std::nullopt;
    }
  }
  /// For a queue that is drained, whose loop does not turn: the task waits for this request, or if
  /// it runs already the request waits for its end.
  uint32_t EnterNow();
  /// Enters even while the disk is held: for follow-up work of a request that is still under way.
  /// Leave takes the result.
  uint32_t EnterBeside() { return gate_.Enter(); }
  void Leave(uint32_t token) {
    gate_.Leave(token);
    if (closed_.load()) OnLeft();
  }
  /// After this OnReleased is not called any more.
  void Forget(Waiter& waiter);

  /// Waits until no request is under way, runs `task`, and lets requests in again. One task at a
  /// time. Must not be called on a thread that requests need to complete, which are the queues'
  /// home threads and the slow worker's; nor may the task wait for one of them.
  vmm::Result<void> Run(const std::function<vmm::Result<void>()>& task);

 private:
  bool Await(Waiter& waiter);
  void OnLeft();

  IoGate& gate_;
  std::atomic<bool> closed_{false};
  std::mutex turn_;   // held by Run
  std::mutex mutex_;  // guards what follows, and every change of closed_
  std::condition_variable changed_;
  bool running_ = false;
  std::set<Waiter*> waiters_;
};

}  // namespace kvmbus::virtdev
