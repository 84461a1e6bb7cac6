// SPDX-License-Identifier: Apache-2.0
// Reading and writing blocks, and making them durable.
#include <algorithm>

#include "virtdev/scsi/block_extent.h"
#include "virtdev/scsi/scsi_disk.h"

namespace kvmbus::virtdev {

namespace {

/// Byte 1 of READ and WRITE of 10 bytes and more.
constexpr uint8_t kProtect = 0xe0;
constexpr uint8_t kFua = 0x08;
constexpr uint8_t kRelativeAddress = 0x01;

bool HasFlags(const std::array<uint8_t, 16>& cdb) { return scsi::CdbBytes(cdb[0]) > 6; }
bool IsFua(const std::array<uint8_t, 16>& cdb) { return HasFlags(cdb) && (cdb[1] & kFua) != 0; }

}  // namespace

/// The blocks that the command block names, as bytes of the disk; false if they are not on it.
bool ScsiDisk::CheckExtent(ScsiCommand& command, ScsiCommand::Extent* extent, Step* failed) {
  const scsi::BlockExtent blocks = scsi::ParseExtent(command.cdb);
  const uint64_t total = sectors();
  if (blocks.lba > total || blocks.count > total - blocks.lba) {
    *failed = Fail(command, scsi::kLbaOutOfRange);
    return false;
  }
  // No overflow: both are at most the disk's bytes.
  extent->offset = blocks.lba * info_.logical_sector_bytes;
  extent->length = blocks.count * info_.logical_sector_bytes;
  return true;
}

/// Makes buffer and extent the same length: whole blocks, as many as both have.
void ScsiDisk::ClampToBuffer(ScsiCommand& command, ScsiCommand::Extent* extent) {
  const uint64_t room =
      command.data.size() / info_.logical_sector_bytes * info_.logical_sector_bytes;
  if (room < extent->length) {
    command.overrun = true;
    extent->length = room;
  }
  command.data.Truncate(extent->length);
}

ScsiDisk::Step ScsiDisk::Read(ScsiCommand& command) {
  if (HasFlags(command.cdb) && (command.cdb[1] & (kProtect | kRelativeAddress)) != 0)
    return Fail(command, scsi::kInvalidFieldInCdb);
  Step failed;
  if (!CheckExtent(command, &command.rest_, &failed)) return failed;
  if (!command.data_in) command.data.Clear();
  ClampToBuffer(command, &command.rest_);
  if (command.rest_.length == 0) return Good(command);
  // FUA: from the medium; so what a cache holds must be on it first.
  if (IsFua(command.cdb) && !info_.read_only)
    return Submit(command, DiskRequest::Op::kFlush, {}, &ScsiDisk::ReadAfterFlush);
  return ReadAfterFlush(command);
}

ScsiDisk::Step ScsiDisk::ReadAfterFlush(ScsiCommand& command) {
  command.request_.iov = command.data.iov();
  return Submit(command, DiskRequest::Op::kRead, command.rest_, &ScsiDisk::FinishRead);
}

ScsiDisk::Step ScsiDisk::FinishRead(ScsiCommand& command) {
  command.data.MarkDirty(command.data.size());
  return Good(command, command.data.size());
}

ScsiDisk::Step ScsiDisk::Write(ScsiCommand& command) {
  if (HasFlags(command.cdb) && (command.cdb[1] & (kProtect | kRelativeAddress)) != 0)
    return Fail(command, scsi::kInvalidFieldInCdb);
  if (info_.read_only) return Fail(command, scsi::kWriteProtected);
  Step failed;
  if (!CheckExtent(command, &command.rest_, &failed)) return failed;
  if (command.data_in) command.data.Clear();
  ClampToBuffer(command, &command.rest_);
  if (command.rest_.length == 0) return Good(command);
  command.request_.fua = IsFua(command.cdb);
  command.request_.iov = command.data.iov();
  return Submit(command, DiskRequest::Op::kWrite, command.rest_, &ScsiDisk::FinishWrite);
}

ScsiDisk::Step ScsiDisk::FinishWrite(ScsiCommand& command) {
  return Good(command, command.data.size());
}

/// Whatever the range and IMMED: all of the cache, before the status.
ScsiDisk::Step ScsiDisk::SynchronizeCache(ScsiCommand& command) {
  Step failed;
  ScsiCommand::Extent extent;
  if (!CheckExtent(command, &extent, &failed)) return failed;
  if (info_.read_only) return Good(command);
  return Submit(command, DiskRequest::Op::kFlush, {}, &ScsiDisk::FinishWithoutData);
}

ScsiDisk::Step ScsiDisk::FinishWithoutData(ScsiCommand& command) { return Good(command); }

}  // namespace kvmbus::virtdev
