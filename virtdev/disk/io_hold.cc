// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/io_hold.h"

namespace kvmbus::virtdev {

/// False: the hold was over before the waiter could be noted.
bool IoHold::Await(Waiter& waiter) {
  std::lock_guard lock(mutex_);
  if (!closed_.load()) return false;
  waiters_.insert(&waiter);
  return true;
}

uint32_t IoHold::EnterNow() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !running_; });
  return gate_.Enter();
}

void IoHold::OnLeft() {
  std::lock_guard lock(mutex_);
  changed_.notify_all();
}

void IoHold::Forget(Waiter& waiter) {
  std::lock_guard lock(mutex_);
  waiters_.erase(&waiter);
}

vmm::Result<void> IoHold::Run(const std::function<vmm::Result<void>()>& task) {
  std::lock_guard turn(turn_);
  std::unique_lock lock(mutex_);
  closed_.store(true);
  changed_.wait(lock, [this] { return gate_.IsEmpty(); });
  running_ = true;
  lock.unlock();
  auto result = task();
  lock.lock();
  running_ = false;
  closed_.store(false);
  for (Waiter* waiter : waiters_) waiter->OnReleased();
  waiters_.clear();
  changed_.notify_all();
  return result;
}

}  // namespace kvmbus::virtdev
