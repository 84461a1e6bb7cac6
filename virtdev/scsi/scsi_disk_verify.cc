// SPDX-License-Identifier: Apache-2.0
// VERIFY and WRITE AND VERIFY: blocks read back in pieces, and compared if the initiator asks.
#include <algorithm>

#include "virtdev/scsi/block_extent.h"
#include "virtdev/scsi/scsi_disk.h"

namespace kvmbus::virtdev {

namespace {

constexpr uint64_t kPieceBytes = 32u << 10;  ///< read back at once; a multiple of every sector size

/// BYTCHK of byte 1.
enum ByteCheck : uint8_t {
  kMediumOnly = 0,
  kCompareAll = 1,
  kReserved = 2,
  kCompareOneBlock = 3,
};

constexpr uint8_t kProtectAndRelative = 0xe1;

ByteCheck ByteCheckOf(const std::array<uint8_t, 16>& cdb) {
  return static_cast<ByteCheck>(cdb[1] >> 1 & 3);
}

}  // namespace

ScsiDisk::Step ScsiDisk::WriteAndVerify(ScsiCommand& command) {
  const ByteCheck check = ByteCheckOf(command.cdb);
  if ((command.cdb[1] & kProtectAndRelative) != 0 || check > kCompareAll)
    return Fail(command, scsi::kInvalidFieldInCdb);
  if (info_.read_only) return Fail(command, scsi::kWriteProtected);
  Step failed;
  if (!CheckExtent(command, &command.rest_, &failed)) return failed;
  if (command.data_in) command.data.Clear();
  ClampToBuffer(command, &command.rest_);
  if (command.rest_.length == 0) return Good(command);
  command.byte_check_ = check;
  command.data_offset_ = 0;
  command.request_.fua = true;  // what is read back ought to be the medium's
  command.request_.iov = command.data.iov();
  return Submit(command, DiskRequest::Op::kWrite, command.rest_, &ScsiDisk::VerifyNext);
}

ScsiDisk::Step ScsiDisk::Verify(ScsiCommand& command) {
  const ByteCheck check = ByteCheckOf(command.cdb);
  if ((command.cdb[1] & kProtectAndRelative) != 0 || check == kReserved)
    return Fail(command, scsi::kInvalidFieldInCdb);
  Step failed;
  if (!CheckExtent(command, &command.rest_, &failed)) return failed;
  if (command.data_in || check == kMediumOnly) command.data.Clear();
  command.byte_check_ = check;
  command.data_offset_ = 0;
  if (check == kCompareAll) {
    // Fewer bytes than blocks: a GOOD would vouch for what nobody compared.
    if (command.data.size() < command.rest_.length) return Fail(command, scsi::kInvalidFieldInCdb);
    command.data.Truncate(command.rest_.length);
  } else if (check == kCompareOneBlock && command.rest_.length != 0) {
    command.data.Truncate(info_.logical_sector_bytes);
    command.block_.resize(info_.logical_sector_bytes);
    if (command.data.CopyIn(0, command.block_) < command.block_.size())
      return Fail(command, scsi::kInvalidFieldInCdb);
  }
  return VerifyNext(command);
}

ScsiDisk::Step ScsiDisk::VerifyNext(ScsiCommand& command) {
  if (command.rest_.length == 0) return Good(command, command.data.size());
  if (MustEnd(command)) return End(command, scsi::Status::kBusy);
  const uint64_t bytes = std::min(command.rest_.length, kPieceBytes);
  command.scratch_.resize(bytes);
  command.scratch_iov_.assign(1, iovec{command.scratch_.data(), bytes});
  command.request_.iov = command.scratch_iov_;
  return Submit(command, DiskRequest::Op::kRead, {command.rest_.offset, bytes},
                &ScsiDisk::CheckVerified);
}

ScsiDisk::Step ScsiDisk::CheckVerified(ScsiCommand& command) {
  const std::span<const uint8_t> read = command.scratch_;
  bool equal = true;
  if (command.byte_check_ == kCompareAll) {
    equal = command.data.Equals(command.data_offset_, read);
  } else if (command.byte_check_ == kCompareOneBlock) {
    for (size_t at = 0; at < read.size() && equal; at += command.block_.size())
      equal = std::equal(command.block_.begin(), command.block_.end(),
                         read.begin() + static_cast<ptrdiff_t>(at));
  }
  if (!equal) return Fail(command, scsi::kMiscompareDuringVerify);
  command.rest_.offset += read.size();
  command.rest_.length -= read.size();
  command.data_offset_ += read.size();
  return VerifyNext(command);
}

}  // namespace kvmbus::virtdev
