// SPDX-License-Identifier: Apache-2.0
#include "virtdev/shared_disk/remote_scsi_disk.h"

#include <algorithm>
#include <optional>

#include "virtdev/scsi/block_extent.h"
#include "virtdev/scsi/command_set.h"
#include "virtdev/scsi/scsi_inquiry.h"
#include "vmm/os/log.h"

namespace kvmbus::virtdev {

using scsi::Opcode;
using shared_disk::Call;
using vmm::Result;

namespace {

/// What Storage QoS takes the command for; none: it has nothing to do with it.
std::optional<DiskRequest::Op> OpOf(const ScsiCommand& command) {
  switch (static_cast<Opcode>(command.cdb[0])) {
    case Opcode::kRead6:
    case Opcode::kRead10:
    case Opcode::kRead12:
    case Opcode::kRead16:
    case Opcode::kVerify10:
    case Opcode::kVerify12:
    case Opcode::kVerify16:
      return DiskRequest::Op::kRead;
    case Opcode::kWrite6:
    case Opcode::kWrite10:
    case Opcode::kWrite12:
    case Opcode::kWrite16:
    case Opcode::kWriteAndVerify10:
    case Opcode::kWriteAndVerify12:
    case Opcode::kWriteAndVerify16:
    case Opcode::kWriteSame10:
    case Opcode::kWriteSame16:
      return DiskRequest::Op::kWrite;
    case Opcode::kUnmap:
      return DiskRequest::Op::kUnmap;
    case Opcode::kSynchronizeCache10:
    case Opcode::kSynchronizeCache16:
      return DiskRequest::Op::kFlush;
    default:
      return std::nullopt;
  }
}

/// Of commands that move more blocks than their buffer has: at most so many bytes; 0: of the
/// others.
uint64_t MostBlockBytes(const ScsiCommand& command, uint64_t disk_bytes) {
  switch (static_cast<Opcode>(command.cdb[0])) {
    case Opcode::kVerify10:
    case Opcode::kVerify12:
    case Opcode::kVerify16:
      return disk_bytes;
    case Opcode::kWriteSame10:
    case Opcode::kWriteSame16:
      return scsi::kMaxWriteSameBytes;
    default:
      return 0;
  }
}

}  // namespace

ScsiUnit::Step RemoteScsiDisk::Dispatch(ScsiCommand& command) {
  // First: what is known to be lost is known before there is another owner.
  command.owner_token_ = disk_->token();
  const auto opcode = static_cast<Opcode>(command.cdb[0]);
  const bool hears_attentions = opcode != Opcode::kInquiry && opcode != Opcode::kRequestSense;
  if (hears_attentions && disk_->TakePowerLoss()) return Fail(command, scsi::kPowerOnOccurred);
  const auto op = OpOf(command);
  if (op == DiskRequest::Op::kFlush) {
    if (disk_->TakeLostWrites()) return Fail(command, scsi::kWriteError);
    command.written_before_ = disk_->written();
  }
  for (const uint64_t gpa : command.data.gpas()) {
    // The owner sees the guest's memory, not ours.
    if (gpa == GuestBuffer::kNoGpa) return Fail(command, scsi::kInternalTargetFailure);
  }
  DiskRequest& request = command.request_;
  request.completion = &command;
  request.command = &command;
  request.unlimited = !op.has_value();
  request.op = op.value_or(DiskRequest::Op::kRead);
  const uint64_t most = MostBlockBytes(command, disk_->size_bytes());
  command.moves_blocks_ = most != 0;
  request.length = command.moves_blocks_
                       ? std::min(scsi::ParseExtent(command.cdb).count * sector_bytes_, most)
                       : command.data.size();
  command.next_ = static_cast<ScsiCommand::Continuation>(&RemoteScsiDisk::Conclude);
  command.queue_->Submit(request);
  return Step::kWaiting;
}

ScsiUnit::Step RemoteScsiDisk::Conclude(ScsiCommand& command) {
  const bool good = command.status == scsi::Status::kGood;
  // A read that failed half way may have changed some of the guest's pages all the same.
  if (command.data_in) command.data.MarkDirty(good ? command.bytes_moved : command.data.size());
  if (!good) return Step::kFinished;
  if (command.request_.op == DiskRequest::Op::kFlush) {
    disk_->NoteFlushed(command.written_before_);
  } else if (scsi::DiskAccessOf(command.cdb) == PersistentReservations::Access::kWrite) {
    disk_->NoteWritten();
    // Its owner died meanwhile, and what was lost with it has been reckoned without this.
    if (!disk_->IsCurrent(command.owner_token_)) return End(command, scsi::Status::kBusy);
  }
  return Step::kFinished;
}

void RemoteScsiDisk::Reset() {
  shared_disk::Request request;
  request.call = Call::kReset;
  // An owner that is away has forgotten what a reset would make it forget.
  const auto reset = disk_->Call(request);
  if (!reset.ok()) spdlog::warn("resetting a shared disk: {}", reset.error().ToString());
}

Result<ScsiDisk::State> RemoteScsiDisk::Save() {
  shared_disk::Request request;
  request.call = Call::kSave;
  const shared_disk::Reply reply = TRY(disk_->Call(request));
  const ScsiDisk::State state = {
      reply.reported_sectors,
      {static_cast<scsi::SenseKey>(reply.sense[0]), reply.sense[1], reply.sense[2]}};
  if (!ScsiDisk::IsValid(state))
    return vmm::Error(vmm::Code::kInternal, "the shared disk's owner has no state to be saved");
  return state;
}

Result<void> RemoteScsiDisk::Restore(const ScsiDisk::State& state) {
  shared_disk::Request request;
  request.call = Call::kRestore;
  request.reported_sectors = state.reported_sectors;
  request.sense = {static_cast<uint8_t>(state.stored_sense.key), state.stored_sense.asc,
                   state.stored_sense.ascq};
  TRY(disk_->Call(request));
  return {};
}

}  // namespace kvmbus::virtdev
