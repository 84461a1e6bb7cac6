// SPDX-License-Identifier: Apache-2.0
/// \file
/// FileThread: work on files that takes long, one after the other, beside the manager's loop.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "vmm/event/loop.h"

namespace kvmbus::vmm {

/// Home: the loop that is told.
class FileThread {
 public:
  using Work = std::function<Result<void>()>;
  using Done = std::function<void(const Result<void>&)>;

  FileThread(Loop& loop, const std::string& name);
  /// Waits for the work under way; nobody is told of it.
  ~FileThread();

  /// Runs `work` on the thread, then `done` on the loop.
  void Do(Work work, Done done);

 private:
  Loop& loop_;
  std::unique_ptr<LoopThread> thread_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvmbus::vmm
