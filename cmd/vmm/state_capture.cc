// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmm/state_capture.h"

#include "vmm/os/log.h"
#include "vmm/os/thread.h"

namespace kvmbus::cmd {

using vmm::Code;
using vmm::Error;
using vmm::Result;

StateCapture::StateCapture(vmm::Loop& loop, CaptureSource& source, worker::CaptureRequest request,
                           Done done)
    : loop_(loop),
      source_(source),
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
  {
    const std::lock_guard lock(mutex_);
    gone_ = true;
  }
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
  TRY_VOID(PrepareChildren());
  TRY_VOID(OnLoop([this] { return AtInstant(); }));
  if (writer_ != nullptr) {
    auto completed = Complete();
    if (request_.stop()) completed = OnLoop([this, completed] { return EndStop(completed); }, true);
    TRY_VOID(std::move(completed));
  }
  reply_.set_total_ns(clock.MonotonicNs() - start);
  return reply_;
}

Result<void> StateCapture::CopyLive() {
  source_.FinishLoading();
  vmm::Machine& machine = source_.machine();
  writer_ = TRY(vmm::SavedStateWriter::Create({request_.state_path(), request_.memory_path()},
                                              machine.memory(), request_.compress()));
  vmm::RamSaver::Options options;
  options.copy_on_write = !request_.stop();
  options.compress = request_.compress();
  saver_ = std::make_unique<vmm::RamSaver>(machine.memory(), machine.vm().dirty_tracker(), *writer_,
                                           options, [this](uint64_t done, uint64_t total) {
                                             done_bytes_ = done;
                                             total_bytes_ = total;
                                             return !cancelled_.load();
                                           });
  return saver_->CopyLive();
}

/// Waits for their disks, which neither the guest nor the loop does then.
Result<void> StateCapture::PrepareChildren() {
  for (const worker::CreateChildRequest& child : request_.children()) {
    CaptureSource::MakeChild make;
    const auto find_disk = [&]() -> Result<void> {
      make = TRY(source_.ChildMaker(child.controller(), child.lun(), child.path()));
      return {};
    };
    TRY_VOID(OnLoop(find_disk));
    TRY_VOID(make());
  }
  return {};
}

Result<void> StateCapture::OnLoop(std::function<Result<void>()> task, bool always) {
  const auto is_over = [this, always] { return gone_ || (cancelled_ && !always); };
  task_begun_ = false;
  task_result_.reset();
  loop_.Post([this, is_over, task = std::move(task), alive = std::weak_ptr<bool>(alive_)] {
    if (alive.expired()) return;
    {
      const std::lock_guard lock(mutex_);
      if (is_over()) return;
      task_begun_ = true;
    }
    auto result = task();
    const std::lock_guard lock(mutex_);
    task_result_ = std::move(result);
    changed_.notify_all();
  });
  std::unique_lock lock(mutex_);
  // What has begun has an end, whoever cancels meanwhile.
  changed_.wait(lock, [&] { return task_result_.has_value() || (is_over() && !task_begun_); });
  if (!task_result_) return Error(Code::kCancelled, "cancelled");
  return std::move(*task_result_);
}

/// Stops the guest for the instant.
Result<void> StateCapture::AtInstant() {
  vmm::Machine& machine = source_.machine();
  // Disks that are at rest by the guest's own doing: a pause would end that.
  if (writer_ == nullptr && !request_.pause()) return TakeInstant();
  was_running_ = machine.state() == vmm::MachineState::kRunning;
  const uint64_t start = loop_.clock().MonotonicNs();
  if (was_running_) {
    TRY_VOID(machine.Pause());
  } else if (machine.state() != vmm::MachineState::kPaused) {
    return vmm::MakeError(Code::kFailedPrecondition, "the virtual machine is {}",
                          vmm::MachineStateName(machine.state()));
  }
  auto taken = TakeInstant();
  if (taken.ok() && request_.stop()) taken = machine.BeginSaving();
  if (was_running_ && (!request_.stop() || !taken.ok())) {
    auto resumed = machine.Resume();
    if (taken.ok()) taken = std::move(resumed);
  }
  reply_.set_pause_ns(loop_.clock().MonotonicNs() - start);
  return taken;
}

Result<void> StateCapture::TakeInstant() {
  if (writer_ != nullptr) {
    TRY_VOID(saver_->HoldRest());
    machine_.devices = TRY(source_.machine().SaveUnits());
    machine_.fdt = source_.fdt();
    machine_.vm_version = request_.vm_version();
    machine_.checkpoint = request_.children_size() != 0;
  }
  for (const worker::CreateChildRequest& child : request_.children())
    TRY_VOID(source_.SwitchToChild(child.controller(), child.lun()));
  // A saved machine goes on from what its disks have: it has to be there by then.
  if (request_.stop()) TRY_VOID(source_.FlushDisks());
  return {};
}

Result<void> StateCapture::Complete() {
  TRY_VOID(saver_->CopyRest());
  reply_.set_bytes_written(saver_->bytes_written());
  saver_.reset();
  return writer_->Publish(machine_);
}

/// The files are whole or not there; a guest that was to stay stopped runs on without them.
Result<void> StateCapture::EndStop(Result<void> completed) {
  vmm::Machine& machine = source_.machine();
  if (completed.ok()) return machine.MarkSaved();
  auto resumed = machine.GiveUpSaving();
  if (resumed.ok() && was_running_) resumed = machine.Resume();
  if (!resumed.ok()) spdlog::error("after a save that failed: {}", resumed.error().ToString());
  return completed;
}

}  // namespace kvmbus::cmd
