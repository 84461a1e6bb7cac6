// SPDX-License-Identifier: Apache-2.0
/// \file
/// CaptureFollower: a worker's capture as a job sees it: how far it is, and a way to end it.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "vmm/event/loop.h"
#include "vmm/manager/inventory.h"
#include "vmm/manager/jobs.h"

namespace kvmbus::vmm {

/// Home: the manager's loop.
class CaptureFollower {
 public:
  CaptureFollower(Loop& loop, Inventory& inventory, Jobs& jobs)
      : loop_(loop), inventory_(inventory), jobs_(jobs) {}
  ~CaptureFollower();

  /// The job shows what the worker of the VM says of its capture, and cancels it, until Stop.
  void Follow(const std::string& job, const std::string& vm);
  void Stop(const std::string& job);

  /// Of a capture that an earlier vmmd began: `over` when there is none, or no worker, any more.
  void AwaitEnd(const std::string& job, const std::string& vm, std::function<void()> over);

 private:
  void Poll(const std::string& job, const std::string& vm);

  Loop& loop_;
  Inventory& inventory_;
  Jobs& jobs_;
  std::map<std::string, Loop::TimerId> timers_;  // by job
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvmbus::vmm
