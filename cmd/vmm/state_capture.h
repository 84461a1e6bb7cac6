// SPDX-License-Identifier: Apache-2.0
/// \file
/// StateCapture: the machine as it is at one instant, taken while its guest runs: memory and
/// devices into a saved state, disks by new children.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "cmd/vmm/capture_source.h"
#include "vmm/event/loop.h"
#include "vmm/saved_state/ram_saver.h"
#include "vmm/saved_state/saved_state.h"
#include "worker/worker.pb.h"

namespace kvmbus::cmd {

/// Home: the main loop. The copying is done on a thread of its own, the instant on the loop.
class StateCapture {
 public:
  using Done = std::function<void(const vmm::Result<worker::CaptureReply>&)>;

  /// `done` comes on the loop, unless the object is gone by then.
  StateCapture(vmm::Loop& loop, CaptureSource& source, worker::CaptureRequest request, Done done);
  /// Cancels it, and waits for its end. The guest, if it is stopped, stays so.
  ~StateCapture();

  /// Home thread. The guest runs on, unless all is in the files by then.
  void Cancel();
  uint64_t done() const { return done_bytes_.load(); }
  uint64_t total() const { return total_bytes_.load(); }

 private:
  vmm::Result<worker::CaptureReply> Run();
  vmm::Result<void> CopyLive();
  vmm::Result<void> PrepareChildren();
  /// Has `task` done by the loop and waits for it. kCancelled: it is not done, as the capture was
  /// cancelled, or the object goes; with `always`, the latter alone.
  vmm::Result<void> OnLoop(std::function<vmm::Result<void>()> task, bool always = false);
  vmm::Result<void> AtInstant();
  vmm::Result<void> TakeInstant();
  vmm::Result<void> Complete();
  vmm::Result<void> EndStop(vmm::Result<void> completed);

  vmm::Loop& loop_;
  CaptureSource& source_;
  const worker::CaptureRequest request_;
  std::unique_ptr<vmm::SavedStateWriter> writer_;  ///< null: the disks alone
  std::unique_ptr<vmm::RamSaver> saver_;
  vmm::SavedMachine machine_;
  worker::CaptureReply reply_;
  std::atomic<uint64_t> done_bytes_{0}, total_bytes_{0};

  bool was_running_ = false;  ///< at the instant

  std::mutex mutex_;  // guards the next four; `cancelled_` is read by others too
  bool task_begun_ = false;
  std::optional<vmm::Result<void>> task_result_;
  std::atomic<bool> cancelled_{false};
  bool gone_ = false;
  std::condition_variable changed_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace kvmbus::cmd
