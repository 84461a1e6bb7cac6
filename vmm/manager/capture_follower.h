// SPDX-License-Identifier: Apache-2.0
/// \file
/// CaptureFollower: a worker's capture as a job sees it: how far it is, and a way to end it.
#pragma once

#include <functional>
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

  /// The job shows what the worker of the VM says of its capture, until Stop. Cancelled before the
  /// capture has begun, it cancels that when it begins.
  void Follow(const std::string& job, const std::string& vm);
  void Stop(const std::string& job);

  /// As Follow, of a capture that an earlier vmmd began: `over` when the worker says that there is
  /// none any more, or its process has ended. A worker that says nothing is asked again and again:
  /// whoever took its silence for the end would undo what it then makes.
  void AwaitEnd(const std::string& job, const std::string& vm, std::function<void()> over);
  /// Cancels a capture whose answer did not come, and then as AwaitEnd.
  void EndCapture(const std::string& job, const std::string& vm, std::function<void()> over);

 private:
  struct Watch {
    std::string job, vm;
    std::function<void()> over;  ///< null: until Stop
    bool cancelled = false;
    Loop::TimerId timer = 0;
  };

  Watch& Begin(const std::string& job, const std::string& vm);
  void Ask(Watch& watch);
  void AskLater(Watch& watch);
  void SendCancel(const Watch& watch);
  bool HasNoWorker(const Watch& watch) const;
  void OnStatus(Watch& watch, const Result<worker::Reply>& reply);
  void End(Watch& watch);

  Loop& loop_;
  Inventory& inventory_;
  Jobs& jobs_;
  std::map<std::string, std::shared_ptr<Watch>> watches_;  // by job; replies hold weak pointers
};

}  // namespace kvmbus::vmm
