// SPDX-License-Identifier: Apache-2.0
/// \file
/// DiskChange: one change of a disk in use, on a thread of its own.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "virtdev/disk/tools/disk_tools.h"
#include "vmm/event/loop.h"

namespace kvmbus::cmd {

/// Home: the main loop.
class DiskChange {
 public:
  /// On the thread; the progress is false once the change is cancelled.
  using Work = std::function<vmm::Result<void>(const virtdev::Progress&)>;
  /// On the loop, unless the object is gone by then.
  using Done = std::function<void(const vmm::Result<void>&)>;

  DiskChange(vmm::Loop& loop, Work work, Done done);
  /// Cancels it, and waits for its end.
  ~DiskChange();
  void Cancel() { cancelled_ = true; }
  uint64_t done() const { return done_.load(); }
  uint64_t total() const { return total_.load(); }

 private:
  std::atomic<bool> cancelled_{false};
  std::atomic<uint64_t> done_{0}, total_{0};
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace kvmbus::cmd
