// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmm/state_capture.h"

#include "vmm/os/log.h"
#include "vmm/os/thread.h"

namespace kvmbus::cmd {

using vmm::Code;
using vmm::Error;
using vmm::Result;

StateCapture::StateCapture(vmm::Loop& loop, Board& board, worker::CaptureRequest request, Done done)
    : loop_(loop),
      board_(board),
      request_(std::move(request)),
      thread_([this, done = std::move(done)] {
        vmm::NameThisThread("work/save");
        auto result = Run();
        saver_.reset();
        writer_.reset();
        loop_.Post([done, result = std::move(result), alive = std::weak_ptr<bool>(alive_)] {
          if (!alive.expired()) done(result);
        });
      }) {}

StateCapture::~StateCapture() {
  Cancel();
  thread_.join();
}

void StateCapture::Cancel() {
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
  changed_.notify_all();
}

Result<worker::CaptureReply> StateCapture::Run() {
  const vmm::Clock& clock = loop_.clock();
  const uint64_t start = clock.MonotonicNs();
  if (!request_.state_path().empty()) TRY_VOID(CopyLive());
  TRY_VOID(OnLoop([this] { return AtInstant(); }));
  if (writer_ != nullptr) {
    auto completed = Complete();
    // The files are whole or not there; a guest that was to stay stopped runs on without them.
    if (!completed.ok() && request_.stop())
      (void)OnLoop([this] { return board_.machine().Resume(); });
    TRY_VOID(std::move(completed));
  }
  if (request_.stop()) TRY_VOID(OnLoop([this] { return board_.machine().MarkSaved(); }));
  reply_.set_total_ns(clock.MonotonicNs() - start);
  return reply_;
}

Result<void> StateCapture::CopyLive() {
  board_.FinishLoading();
  vmm::Machine& machine = board_.machine();
  writer_ = TRY(vmm::SavedStateWriter::Create({request_.state_path(), request_.memory_path()},
                                              machine.memory()));
  vmm::RamSaver::Options options;
  options.copy_on_write = !request_.stop();
  saver_ = std::make_unique<vmm::RamSaver>(machine.memory(), machine.vm().dirty_tracker(), *writer_,
                                           options, [this](uint64_t done, uint64_t total) {
                                             done_bytes_ = done;
                                             total_bytes_ = total;
                                             return !cancelled_.load();
                                           });
  return saver_->CopyLive();
}

Result<void> StateCapture::OnLoop(std::function<Result<void>()> task) {
  loop_result_.reset();
  loop_.Post([this, task = std::move(task), alive = std::weak_ptr<bool>(alive_)] {
    if (alive.expired()) return;
    {
      const std::lock_guard lock(mutex_);
      if (cancelled_) return;
    }
    auto result = task();
    const std::lock_guard lock(mutex_);
    loop_result_ = std::move(result);
    changed_.notify_all();
  });
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return loop_result_.has_value() || cancelled_.load(); });
  if (!loop_result_) return Error(Code::kCancelled, "cancelled");
  return std::move(*loop_result_);
}

/// Stops the guest for the instant.
Result<void> StateCapture::AtInstant() {
  vmm::Machine& machine = board_.machine();
  // Of the disks alone, which are at rest by the guest's own doing: a pause would end that.
  if (writer_ == nullptr) return TakeInstant();
  const bool running = machine.state() == vmm::MachineState::kRunning;
  const uint64_t start = loop_.clock().MonotonicNs();
  if (running) {
    TRY_VOID(machine.Pause());
  } else if (machine.state() != vmm::MachineState::kPaused) {
    return vmm::MakeError(Code::kFailedPrecondition, "the virtual machine is {}",
                          vmm::MachineStateName(machine.state()));
  }
  auto taken = TakeInstant();
  if (running && (!request_.stop() || !taken.ok())) {
    auto resumed = machine.Resume();
    if (taken.ok()) taken = std::move(resumed);
  }
  reply_.set_pause_ns(loop_.clock().MonotonicNs() - start);
  return taken;
}

Result<void> StateCapture::TakeInstant() {
  if (writer_ != nullptr) {
    TRY_VOID(saver_->HoldRest());
    machine_.devices = TRY(board_.machine().SaveUnits());
    machine_.fdt = board_.fdt();
    machine_.vm_version = request_.vm_version();
    machine_.checkpoint = request_.children_size() != 0;
  }
  for (const worker::CreateChildRequest& child : request_.children())
    TRY_VOID(board_.SwitchToChild(child.controller(), child.lun(), child.path()));
  // A saved machine goes on from what its disks have: it has to be there by then.
  if (request_.stop()) TRY_VOID(board_.FlushDisks());
  return {};
}

Result<void> StateCapture::Complete() {
  TRY_VOID(saver_->CopyRest());
  reply_.set_bytes_written(saver_->bytes_written());
  saver_.reset();
  return writer_->Publish(machine_);
}

}  // namespace kvmbus::cmd
