// SPDX-License-Identifier: Apache-2.0
/// \file
/// SlowWorker: a disk's thread for what blocks: flush, unmap, zeroes, the first write.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "virtdev/disk/image.h"

namespace kvmbus::virtdev {

/// Any thread may ask. What waits is bounded by the requests that the guest has under way. Flushes
/// that wait together are one flush.
class SlowWorker {
 public:
  using Task = std::function<vmm::Result<void>()>;
  using Done = std::function<void(int error)>;  ///< on the worker's thread; 0 or an errno

  /// `flush` is what Flush does.
  explicit SlowWorker(Task flush);
  ~SlowWorker();  ///< after all that was asked for is done
  void Flush(Done done);
  void Run(Task task, Done done);

 private:
  void Main();

  const Task flush_;
  std::mutex mutex_;  // guards what follows, up to the thread
  std::condition_variable changed_;
  std::vector<Done> flushes_;
  std::vector<std::pair<Task, Done>> tasks_;
  bool quit_ = false;
  std::thread thread_;  // last: it uses all of the above
};

/// The errno that a guest's request fails with.
int ErrnoOf(const vmm::Error& error);

}  // namespace kvmbus::virtdev
