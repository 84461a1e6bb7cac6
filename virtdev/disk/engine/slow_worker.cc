// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/engine/slow_worker.h"

#include <cerrno>

#include "vmm/os/log.h"
#include "vmm/os/thread.h"

namespace kvmbus::virtdev {
namespace {

int Report(const vmm::Result<void>& result) {
  if (result.ok()) return 0;
  KVMBUS_LOG_LIMITED("disk: {}", result.error().ToString());
  return ErrnoOf(result.error());
}

}  // namespace

int ErrnoOf(const vmm::Error& error) {
  if (error.sys_errno() != 0) return error.sys_errno();
  return error.code() == vmm::Code::kResourceExhausted ? ENOSPC : EIO;
}

SlowWorker::SlowWorker(Task flush) : flush_(std::move(flush)), thread_([this] { Main(); }) {}

SlowWorker::~SlowWorker() {
  {
    std::lock_guard lock(mutex_);
    quit_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void SlowWorker::Flush(Done done) {
  std::lock_guard lock(mutex_);
  flushes_.push_back(std::move(done));
  changed_.notify_all();
}

void SlowWorker::Run(Task task, Done done) {
  std::lock_guard lock(mutex_);
  tasks_.emplace_back(std::move(task), std::move(done));
  changed_.notify_all();
}

void SlowWorker::Main() {
  vmm::NameThisThread("work/flush");
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return quit_ || !flushes_.empty() || !tasks_.empty(); });
    if (flushes_.empty() && tasks_.empty()) return;
    const auto tasks = std::exchange(tasks_, {});
    const auto flushes = std::exchange(flushes_, {});
    lock.unlock();
    for (const auto& [task, done] : tasks) done(Report(task()));
    if (!flushes.empty()) {
      const int error = Report(flush_());
      for (const Done& done : flushes) done(error);
    }
    lock.lock();
  }
}

}  // namespace kvmbus::virtdev
