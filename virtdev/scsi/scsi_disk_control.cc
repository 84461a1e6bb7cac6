// SPDX-License-Identifier: Apache-2.0
// The commands of a disk that touch no block.
#include <algorithm>
#include <bit>

#include "virtdev/scsi/command_set.h"
#include "virtdev/scsi/scsi_disk.h"
#include "virtdev/scsi/scsi_inquiry.h"
#include "virtdev/scsi/scsi_mode.h"

namespace kvmbus::virtdev {

ScsiDisk::Step ScsiDisk::Inquiry(ScsiCommand& command) {
  const auto& cdb = command.cdb;
  const bool vpd = (cdb[1] & 0x01) != 0;
  const bool command_data = (cdb[1] & 0x02) != 0;  // CMDDT, long obsolete
  const uint8_t page = cdb[2];
  const uint16_t allocation = scsi::GetBe<uint16_t>(cdb, 3);
  if (command_data || (!vpd && page != 0)) return Fail(command, scsi::kInvalidFieldInCdb);
  if (!vpd) return Reply(command, scsi::DiskInquiry(), allocation);
  const auto bytes = scsi::DiskVpdPage(page, info_);
  if (!bytes) return Fail(command, scsi::kInvalidFieldInCdb);
  return Reply(command, *bytes, allocation);
}

ScsiDisk::Step ScsiDisk::ModeSense(ScsiCommand& command) {
  constexpr uint8_t kDeviceReadOnly = 0x80;
  constexpr uint8_t kDeviceDpoFua = 0x10;
  const auto device = static_cast<uint8_t>(kDeviceDpoFua | (info_.read_only ? kDeviceReadOnly : 0));
  const auto bytes = scsi::ModeSenseData(command.cdb, scsi::DiskModePages(), device);
  if (!bytes) return Fail(command, bytes.error());
  return Reply(command, *bytes, scsi::ModeAllocationLength(command.cdb));
}

ScsiDisk::Step ScsiDisk::ModeSelect(ScsiCommand& command) {
  std::array<uint8_t, scsi::kMaxModeListBytes> list;
  const size_t length = scsi::ModeAllocationLength(command.cdb);
  if (length > list.size()) return Fail(command, scsi::kParameterListLengthError);
  const size_t have = command.data_in ? 0 : command.data.CopyIn(0, std::span(list).first(length));
  const scsi::Sense sense =
      scsi::CheckModeSelect(command.cdb, std::span(list).first(have), scsi::DiskModePages());
  if (sense != scsi::kNoSense) return Fail(command, sense);
  return Good(command, have);
}

ScsiDisk::Step ScsiDisk::StartStop(ScsiCommand& command) {
  const bool load_or_eject = (command.cdb[4] & 0x02) != 0;
  const bool start = (command.cdb[4] & 0x01) != 0;
  const uint8_t power_condition = command.cdb[4] >> 4;
  // IMMED asks for the status before it is done: it may come after that, too.
  if (load_or_eject || power_condition != 0) return Fail(command, scsi::kInvalidFieldInCdb);
  if (start || info_.read_only) return Good(command);
  return Submit(command, DiskRequest::Op::kFlush, {}, &ScsiDisk::FinishWithoutData);
}

ScsiDisk::Step ScsiDisk::SendDiagnostic(ScsiCommand& command) {
  constexpr uint8_t kSelfTestCode = 0xe0;
  const bool has_list = scsi::GetBe<uint16_t>(command.cdb, 3) != 0;
  if ((command.cdb[1] & kSelfTestCode) != 0 || has_list)
    return Fail(command, scsi::kInvalidFieldInCdb);
  return Good(command);
}

ScsiDisk::Step ScsiDisk::ReadCapacity10(ScsiCommand& command) {
  const bool partial = (command.cdb[8] & 0x01) != 0;  // PMI
  if (!partial && scsi::GetBe<uint32_t>(command.cdb, 2) != 0)
    return Fail(command, scsi::kInvalidFieldInCdb);
  std::array<uint8_t, 8> bytes{};
  scsi::PutBe<uint32_t>(bytes, 0,
                        static_cast<uint32_t>(std::min<uint64_t>(sectors() - 1, 0xffffffff)));
  scsi::PutBe<uint32_t>(bytes, 4, info_.logical_sector_bytes);
  return Reply(command, bytes, bytes.size());
}

ScsiDisk::Step ScsiDisk::ServiceActionIn(ScsiCommand& command) {
  constexpr uint8_t kReadCapacity16 = 0x10;
  if ((command.cdb[1] & 0x1f) != kReadCapacity16) return Fail(command, scsi::kInvalidFieldInCdb);
  std::array<uint8_t, 32> bytes{};
  scsi::PutBe<uint64_t>(bytes, 0, sectors() - 1);
  scsi::PutBe<uint32_t>(bytes, 8, info_.logical_sector_bytes);
  bytes[13] = static_cast<uint8_t>(
      std::countr_zero(info_.physical_sector_bytes / info_.logical_sector_bytes) & 0xf);
  if (info_.can_unmap)
    bytes[14] = static_cast<uint8_t>(0x80 | (info_.unmapped_reads_zero ? 0x40 : 0));
  return Reply(command, bytes, scsi::GetBe<uint32_t>(command.cdb, 10));
}

/// REPORT SUPPORTED OPERATION CODES; the rest of MAINTENANCE IN is for arrays.
ScsiDisk::Step ScsiDisk::MaintenanceIn(ScsiCommand& command) {
  const auto bytes = scsi::ReportOperationCodes(command.cdb, info_.can_unmap);
  if (!bytes) return Fail(command, bytes.error());
  return Reply(command, *bytes, scsi::GetBe<uint32_t>(command.cdb, 6));
}

}  // namespace kvmbus::virtdev
