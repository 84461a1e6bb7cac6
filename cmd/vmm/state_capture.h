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

#include "cmd/vmm/board.h"
#include "vmm/saved_state/ram_saver.h"
#include "vmm/saved_state/saved_state.h"

namespace kvmbus::cmd {

/// Home: the main loop. The copying is done on a thread of its own, the instant on the loop.
class StateCapture {
 public:
  using Done = std::function<void(const vmm::Result<worker::CaptureReply>&)>;

  /// `done` comes on the loop, unless the object is gone by then.
  StateCapture(vmm::Loop& loop, Board& board, worker::CaptureRequest request, Done done);
  /// Cancels it, and waits for its end. The guest, if it is stopped for the instant, stays so.
  ~StateCapture();

  void Cancel();
  uint64_t done() const { return done_bytes_.load(); }
  uint64_t total() const { return total_bytes_.load(); }

 private:
  vmm::Result<worker::CaptureReply> Run();
  vmm::Result<void> CopyLive();
  /// Has `task` done by the loop and waits for it; kCancelled.
  vmm::Result<void> OnLoop(std::function<vmm::Result<void>()> task);
  vmm::Result<void> AtInstant();
  vmm::Result<void> TakeInstant();
  vmm::Result<void> Complete();

  vmm::Loop& loop_;
  Board& board_;
  const worker::CaptureRequest request_;
  std::unique_ptr<vmm::SavedStateWriter> writer_;  ///< null: the disks alone
  std::unique_ptr<vmm::RamSaver> saver_;
  vmm::SavedMachine machine_;
  worker::CaptureReply reply_;
  std::atomic<uint64_t> done_bytes_{0}, total_bytes_{0};

  std::mutex mutex_;  // guards the next two
  std::condition_variable changed_;
  std::optional<vmm::Result<void>> loop_result_;
  std::atomic<bool> cancelled_{false};
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace kvmbus::cmd
