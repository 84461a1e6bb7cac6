// SPDX-License-Identifier: Apache-2.0
// Commands that write or release many blocks at once: WRITE SAME, UNMAP, FORMAT UNIT.
#include <algorithm>

#include "virtdev/scsi/block_extent.h"
#include "virtdev/scsi/scsi_disk.h"
#include "virtdev/scsi/scsi_inquiry.h"

namespace kvmbus::virtdev {

namespace {

constexpr size_t kPatternBytes = 32u << 10;        ///< the block repeated in memory
constexpr uint64_t kPatternWriteBytes = 1u << 20;  ///< written at once: that memory many times over
constexpr uint64_t kFormatBytes = 256u << 20;      ///< zeroed at once

/// Byte 1 of WRITE SAME.
constexpr uint8_t kWriteSameRefused =
    0xe0 | 0x10 | 0x04 | 0x02;  // WRPROTECT, ANCHOR, PBDATA, LBDATA
constexpr uint8_t kWriteSameUnmap = 0x08;
constexpr uint8_t kWriteSameNoData = 0x01;  ///< NDOB, of the 16-byte form

bool IsZero(std::span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

}  // namespace

/// With UNMAP set too the blocks must read as the data afterwards, which kUnmap does not promise
/// for blocks that the image cannot release; kWriteZeroes does, and releases where it can.
ScsiDisk::Step ScsiDisk::WriteSame(ScsiCommand& command) {
  const uint8_t flags = command.cdb[1];
  const bool sixteen = command.cdb[0] == static_cast<uint8_t>(scsi::Opcode::kWriteSame16);
  const bool no_data = sixteen && (flags & kWriteSameNoData) != 0;
  if ((flags & kWriteSameRefused) != 0 || (!sixteen && (flags & kWriteSameNoData) != 0) ||
      ((flags & kWriteSameUnmap) != 0 && !info_.can_unmap))
    return Fail(command, scsi::kInvalidFieldInCdb);
  if (info_.read_only) return Fail(command, scsi::kWriteProtected);
  Step failed;
  if (!CheckExtent(command, &command.rest_, &failed)) return failed;
  // None would mean "to the end of the disk"; page B0 says that we do not do that.
  if (command.rest_.length == 0 || command.rest_.length > scsi::kMaxWriteSameBytes)
    return Fail(command, scsi::kInvalidFieldInCdb);
  if (command.data_in || no_data) command.data.Clear();
  command.data.Truncate(info_.logical_sector_bytes);
  command.block_.assign(info_.logical_sector_bytes, 0);
  if (!no_data && command.data.CopyIn(0, command.block_) < command.block_.size())
    return Fail(command, scsi::kInvalidFieldInCdb);
  command.request_.fua = false;
  if (IsZero(command.block_)) {
    return Submit(command, DiskRequest::Op::kWriteZeroes, command.rest_, &ScsiDisk::FinishWrite);
  }
  command.scratch_.resize(std::min<uint64_t>(kPatternBytes, command.rest_.length));
  for (size_t at = 0; at < command.scratch_.size(); at += command.block_.size())
    std::copy(command.block_.begin(), command.block_.end(),
              command.scratch_.begin() + static_cast<ptrdiff_t>(at));
  return WritePatternNext(command);
}

ScsiDisk::Step ScsiDisk::WritePatternNext(ScsiCommand& command) {
  if (command.rest_.length == 0) return FinishWrite(command);
  if (MustEnd(command)) return End(command, scsi::Status::kBusy);
  const uint64_t bytes = std::min(command.rest_.length, kPatternWriteBytes);
  command.scratch_iov_.clear();
  for (uint64_t done = 0; done < bytes; done += command.scratch_.size())
    command.scratch_iov_.push_back(
        {command.scratch_.data(), std::min<uint64_t>(bytes - done, command.scratch_.size())});
  command.request_.iov = command.scratch_iov_;
  const ScsiCommand::Extent extent{command.rest_.offset, bytes};
  command.rest_.offset += bytes;
  command.rest_.length -= bytes;
  return Submit(command, DiskRequest::Op::kWrite, extent, &ScsiDisk::WritePatternNext);
}

ScsiDisk::Step ScsiDisk::Unmap(ScsiCommand& command) {
  constexpr size_t kHeaderBytes = 8;
  constexpr size_t kDescriptorBytes = 16;
  constexpr uint8_t kAnchor = 0x01;
  if (!info_.can_unmap) return Fail(command, scsi::kInvalidOpcode);
  if ((command.cdb[1] & kAnchor) != 0) return Fail(command, scsi::kInvalidFieldInCdb);
  if (info_.read_only) return Fail(command, scsi::kWriteProtected);
  const size_t length = scsi::GetBe<uint16_t>(command.cdb, 7);
  if (length == 0) return Good(command);
  if (command.data_in) command.data.Clear();
  if (length < kHeaderBytes || command.data.size() < length)
    return Fail(command, scsi::kParameterListLengthError);
  std::vector<uint8_t> list(length);  // 64 KiB at most, for the length has 16 bits
  (void)command.data.CopyIn(0, list);
  const size_t bytes = scsi::GetBe<uint16_t>(list, 2);
  const size_t descriptors = bytes / kDescriptorBytes;  // an incomplete last one is ignored
  if (scsi::GetBe<uint16_t>(list, 0) != length - 2 || bytes != length - kHeaderBytes ||
      descriptors > scsi::kMaxUnmapDescriptors)
    return Fail(command, scsi::kInvalidFieldInList);

  command.extents_.clear();
  const uint64_t total = sectors();
  for (size_t at = kHeaderBytes + descriptors * kDescriptorBytes; at > kHeaderBytes;
       at -= kDescriptorBytes) {
    const uint64_t lba = scsi::GetBe<uint64_t>(list, at - kDescriptorBytes);
    const uint64_t count = scsi::GetBe<uint32_t>(list, at - kDescriptorBytes + 8);
    if (lba > total || count > total - lba) return Fail(command, scsi::kLbaOutOfRange);
    if (count != 0)
      command.extents_.push_back(
          {lba * info_.logical_sector_bytes, count * info_.logical_sector_bytes});
  }
  command.data.Truncate(length);
  return UnmapNext(command);
}

ScsiDisk::Step ScsiDisk::UnmapNext(ScsiCommand& command) {
  if (command.extents_.empty()) return FinishWrite(command);
  if (MustEnd(command)) return End(command, scsi::Status::kBusy);
  const ScsiCommand::Extent extent = command.extents_.back();
  command.extents_.pop_back();
  return Submit(command, DiskRequest::Op::kUnmap, extent, &ScsiDisk::UnmapNext);
}

/// The default format: every block zero. A list of defects or another block length is refused.
ScsiDisk::Step ScsiDisk::FormatUnit(ScsiCommand& command) {
  constexpr uint8_t kProtectionAndData = 0xd0;  // FMTPINFO, FMTDATA
  if ((command.cdb[1] & kProtectionAndData) != 0) return Fail(command, scsi::kInvalidFieldInCdb);
  if (info_.read_only) return Fail(command, scsi::kWriteProtected);
  command.rest_ = {0, sectors() * info_.logical_sector_bytes};
  return FormatNext(command);
}

ScsiDisk::Step ScsiDisk::FormatNext(ScsiCommand& command) {
  if (command.rest_.length == 0)
    return Submit(command, DiskRequest::Op::kFlush, {}, &ScsiDisk::FinishWithoutData);
  if (MustEnd(command)) return End(command, scsi::Status::kBusy);
  const ScsiCommand::Extent extent{command.rest_.offset,
                                   std::min(command.rest_.length, kFormatBytes)};
  command.rest_.offset += extent.length;
  command.rest_.length -= extent.length;
  return Submit(command, DiskRequest::Op::kWriteZeroes, extent, &ScsiDisk::FormatNext);
}

}  // namespace kvmbus::virtdev
