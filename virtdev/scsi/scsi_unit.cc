// SPDX-License-Identifier: Apache-2.0
#include "virtdev/scsi/scsi_unit.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "virtdev/scsi/block_extent.h"

namespace kvmbus::virtdev {

using scsi::Sense;
using scsi::SenseKey;

namespace {

uint32_t PackSense(const Sense& sense) {
  return static_cast<uint32_t>(sense.key) << 16 | static_cast<uint32_t>(sense.asc) << 8 |
         sense.ascq;
}

Sense UnpackSense(uint32_t packed) {
  return {static_cast<SenseKey>(packed >> 16 & 0xf), static_cast<uint8_t>(packed >> 8),
          static_cast<uint8_t>(packed)};
}

}  // namespace

// A command is a chain of steps, each at most one disk request.

void ScsiUnit::Execute(ScsiCommand& command, DiskQueue* queue, const DiskIo* medium) {
  command.unit_ = this;
  command.queue_ = queue;
  command.medium_ = medium;
  command.request_ = {};  // commands are reused: nothing of the one before, perhaps of another disk
  command.status = scsi::Status::kGood;
  command.sense = scsi::kNoSense;
  command.bytes_moved = 0;
  command.overrun = false;
  command.interrupted_ = false;
  command.abandoned_ = false;
  command.counted_ = false;
  Run(command, &ScsiUnit::Start);
}

ScsiUnit::Step ScsiUnit::Start(ScsiCommand& command) {
  if (command.cdb_length < scsi::CdbBytes(command.cdb[0]))
    return Fail(command, scsi::kInvalidFieldInCdb);
  return Dispatch(command);
}

void ScsiCommand::OnDiskComplete(DiskRequest&) {
  request_done_ = true;
  if (!in_step_) unit_->OnRequestDone(*this);
}

void ScsiCommand::Abandon() {
  interrupted_ = abandoned_ = true;
  if (pause_ != 0) EndPause();  // the command may be gone after it
}

void ScsiCommand::EndPause() {
  loop->CancelTimer(std::exchange(pause_, 0));
  unit_->OnRequestDone(*this);
}

/// Commands are reused, and few of them need the memory that these few had.
void ScsiCommand::ReleaseScratch() {
  if (scratch_.capacity() != 0) scratch_ = {};
  if (scratch_iov_.capacity() != 0) scratch_iov_ = {};
  if (extents_.capacity() != 0) extents_ = {};
}

void ScsiUnit::OnRequestDone(ScsiCommand& command) {
  DiskQueue& queue = *command.queue_;
  const ScsiCommand::Continuation next =
      command.request_.error != 0 ? &ScsiUnit::FailRequest : command.next_;
  if (!Run(command, next)) queue.Kick();  // the next step's request: the submitter's batch is gone
}

/// Runs steps until one waits for the disk (false) or the command is done (true). A loop, so that
/// requests that complete inside Submit do not nest.
bool ScsiUnit::Run(ScsiCommand& command, ScsiCommand::Continuation step) {
  for (;;) {
    command.request_done_ = false;
    command.in_step_ = true;
    const Step outcome = (this->*step)(command);
    command.in_step_ = false;
    if (outcome == Step::kFinished) {
      command.ReleaseScratch();
      OnFinished(command);
      command.completion->OnScsiComplete(command);  // the command may be gone after it
      return true;
    }
    if (!command.request_done_) return false;
    step = command.request_.error != 0 ? &ScsiUnit::FailRequest : command.next_;
  }
}

ScsiUnit::Step ScsiUnit::SubmitRequest(ScsiCommand& command, DiskRequest::Op op,
                                       ScsiCommand::Extent extent, ScsiCommand::Continuation next) {
  DiskRequest& request = command.request_;
  request.op = op;
  request.offset = extent.offset;
  request.length = extent.length;
  const bool has_data = op == DiskRequest::Op::kRead || op == DiskRequest::Op::kWrite;
  if (!has_data) request.iov = {};
  if (op != DiskRequest::Op::kWrite) request.fua = false;
  request.completion = &command;
  request.error = 0;
  request.engine = nullptr;
  command.next_ = next;
  command.queue_->Submit(request);
  return Step::kWaiting;
}

ScsiUnit::Step ScsiUnit::PauseUntilNext(ScsiCommand& command, ScsiCommand::Continuation next) {
  constexpr uint64_t kPauseNs = 1'000'000;
  KVMBUS_ASSERT(command.loop != nullptr);
  command.next_ = next;
  command.pause_ = command.loop->AddTimer(kPauseNs, [&command] { command.EndPause(); });
  return Step::kWaiting;
}

ScsiUnit::Step ScsiUnit::Good(ScsiCommand& command, uint64_t bytes_moved) {
  command.status = scsi::Status::kGood;
  command.bytes_moved = bytes_moved;
  return Step::kFinished;
}

ScsiUnit::Step ScsiUnit::Fail(ScsiCommand& command, const Sense& sense) {
  command.sense = sense;
  set_stored_sense(sense);
  return End(command, scsi::Status::kCheckCondition);
}

ScsiUnit::Step ScsiUnit::End(ScsiCommand& command, scsi::Status status) {
  command.status = status;
  command.bytes_moved = 0;
  command.overrun = false;
  return Step::kFinished;
}

ScsiUnit::Step ScsiUnit::Reply(ScsiCommand& command, std::span<const uint8_t> bytes,
                               size_t allocation_length) {
  if (!command.data_in) return Good(command);
  return Good(command,
              command.data.CopyOut(0, bytes.first(std::min(bytes.size(), allocation_length))));
}

ScsiUnit::Step ScsiUnit::FailRequest(ScsiCommand& command) {
  const DiskRequest& request = command.request_;
  const bool read = request.op == DiskRequest::Op::kRead;
  // A read that failed half way may have changed some of the guest's pages all the same.
  if (read && command.data_in) command.data.MarkDirty(command.data.size());
  if (read) return Fail(command, scsi::kReadError);
  if (request.error == ENOSPC || request.error == EDQUOT)
    return Fail(command, scsi::kSpaceAllocationFailed);
  if (request.error == EROFS) return Fail(command, scsi::kWriteProtected);
  return Fail(command, scsi::kWriteError);
}

Sense ScsiUnit::stored_sense() const {
  return UnpackSense(stored_sense_.load(std::memory_order_relaxed));
}

void ScsiUnit::set_stored_sense(const Sense& sense) {
  stored_sense_.store(PackSense(sense), std::memory_order_relaxed);
}

Sense ScsiUnit::TakeStoredSense() {
  return UnpackSense(stored_sense_.exchange(0, std::memory_order_relaxed));
}

}  // namespace kvmbus::virtdev
