// SPDX-License-Identifier: Apache-2.0
#include "virtdev/scsi/command_set.h"

#include <algorithm>
#include <optional>
#include <span>

#include "virtdev/scsi/block_extent.h"

namespace kvmbus::virtdev::scsi {
namespace {

using Access = PersistentReservations::Access;

constexpr uint8_t kNoAction = 0xff;

struct Command {
  Opcode opcode;
  uint8_t action;  ///< kNoAction: the operation code has none
  Access access;
  /// Which bits of the command block are looked at: CDB USAGE DATA but for its first byte.
  std::array<uint8_t, 15> usage;
};

// Kept in the order of operation code and service action.
constexpr Command kCommands[] = {
    {Opcode::kTestUnitReady, kNoAction, Access::kStatus, {}},
    {Opcode::kRequestSense, kNoAction, Access::kNone, {0x01, 0, 0, 0xff}},
    {Opcode::kFormatUnit, kNoAction, Access::kWrite, {0xd0}},
    {Opcode::kRead6, kNoAction, Access::kRead, {0x1f, 0xff, 0xff, 0xff}},
    {Opcode::kWrite6, kNoAction, Access::kWrite, {0x1f, 0xff, 0xff, 0xff}},
    {Opcode::kInquiry, kNoAction, Access::kNone, {0x01, 0xff, 0xff, 0xff}},
    {Opcode::kModeSelect6, kNoAction, Access::kWrite, {0x11, 0, 0, 0xff}},
    {Opcode::kReserve6, kNoAction, Access::kNone, {}},
    {Opcode::kRelease6, kNoAction, Access::kNone, {}},
    {Opcode::kModeSense6, kNoAction, Access::kRead, {0, 0xff, 0xff, 0xff}},
    {Opcode::kStartStopUnit, kNoAction, Access::kWrite, {0x01, 0, 0, 0xf3}},
    {Opcode::kSendDiagnostic, kNoAction, Access::kWrite, {0xe4, 0, 0xff, 0xff}},
    {Opcode::kPreventAllowRemoval, kNoAction, Access::kWrite, {0, 0, 0, 0x03}},
    {Opcode::kReadCapacity10, kNoAction, Access::kStatus, {0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01}},
    {Opcode::kRead10, kNoAction, Access::kRead, {0xf8, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff}},
    {Opcode::kWrite10, kNoAction, Access::kWrite, {0xf8, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff}},
    {Opcode::kWriteAndVerify10,
     kNoAction,
     Access::kWrite,
     {0xf6, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff}},
    {Opcode::kVerify10, kNoAction, Access::kRead, {0xf6, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff}},
    {Opcode::kSynchronizeCache10,
     kNoAction,
     Access::kWrite,
     {0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff}},
    {Opcode::kWriteSame10,
     kNoAction,
     Access::kWrite,
     {0xf8, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff}},
    {Opcode::kUnmap, kNoAction, Access::kWrite, {0x01, 0, 0, 0, 0, 0, 0xff, 0xff}},
    {Opcode::kModeSelect10, kNoAction, Access::kWrite, {0x11, 0, 0, 0, 0, 0, 0xff, 0xff}},
    {Opcode::kReserve10, kNoAction, Access::kNone, {}},
    {Opcode::kRelease10, kNoAction, Access::kNone, {}},
    {Opcode::kModeSense10, kNoAction, Access::kRead, {0, 0xff, 0xff, 0, 0, 0, 0xff, 0xff}},
    {Opcode::kPersistentReserveIn, 0, Access::kStatus, {0x1f, 0, 0, 0, 0, 0, 0xff, 0xff}},
    {Opcode::kPersistentReserveIn, 1, Access::kStatus, {0x1f, 0, 0, 0, 0, 0, 0xff, 0xff}},
    {Opcode::kPersistentReserveIn, 2, Access::kStatus, {0x1f, 0, 0, 0, 0, 0, 0xff, 0xff}},
    {Opcode::kPersistentReserveIn, 3, Access::kStatus, {0x1f, 0, 0, 0, 0, 0, 0xff, 0xff}},
    {Opcode::kPersistentReserveOut, 0, Access::kStatus, {0x1f, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kPersistentReserveOut, 1, Access::kStatus, {0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kPersistentReserveOut, 2, Access::kStatus, {0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kPersistentReserveOut, 3, Access::kStatus, {0x1f, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kPersistentReserveOut, 4, Access::kStatus, {0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kPersistentReserveOut, 5, Access::kStatus, {0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kPersistentReserveOut, 6, Access::kStatus, {0x1f, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kRead16,
     kNoAction,
     Access::kRead,
     {0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kWrite16,
     kNoAction,
     Access::kWrite,
     {0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kWriteAndVerify16,
     kNoAction,
     Access::kWrite,
     {0xf6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kVerify16,
     kNoAction,
     Access::kRead,
     {0xf6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kSynchronizeCache16,
     kNoAction,
     Access::kWrite,
     {0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kWriteSame16,
     kNoAction,
     Access::kWrite,
     {0xf9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kServiceActionIn16,
     0x10,
     Access::kStatus,
     {0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kReportLuns, kNoAction, Access::kNone, {0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kMaintenanceIn,
     0x0c,
     Access::kRead,
     {0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kRead12,
     kNoAction,
     Access::kRead,
     {0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kWrite12,
     kNoAction,
     Access::kWrite,
     {0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kWriteAndVerify12,
     kNoAction,
     Access::kWrite,
     {0xf6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
    {Opcode::kVerify12,
     kNoAction,
     Access::kRead,
     {0xf6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
};

constexpr size_t kTimeoutsBytes = 12;

/// A descriptor of no known times.
void AppendTimeouts(std::vector<uint8_t>& bytes) {
  const size_t at = bytes.size();
  bytes.resize(at + kTimeoutsBytes);
  PutBe<uint16_t>(bytes, at, kTimeoutsBytes - 2);
}

std::vector<uint8_t> AllCommands(bool can_unmap, bool with_timeouts) {
  constexpr uint8_t kHasAction = 0x01;
  constexpr uint8_t kHasTimeouts = 0x02;
  std::vector<uint8_t> bytes(4);
  for (const Command& command : kCommands) {
    if (command.opcode == Opcode::kUnmap && !can_unmap) continue;
    const bool has_action = command.action != kNoAction;
    const size_t at = bytes.size();
    bytes.resize(at + 8);
    bytes[at] = static_cast<uint8_t>(command.opcode);
    if (has_action) bytes[at + 3] = command.action;
    bytes[at + 5] =
        static_cast<uint8_t>((has_action ? kHasAction : 0) | (with_timeouts ? kHasTimeouts : 0));
    PutBe<uint16_t>(bytes, at + 6, static_cast<uint16_t>(CdbBytes(bytes[at])));
    if (with_timeouts) AppendTimeouts(bytes);
  }
  PutBe<uint32_t>(bytes, 0, static_cast<uint32_t>(bytes.size() - 4));
  return bytes;
}

std::vector<uint8_t> OneCommand(const Command* command, bool with_timeouts) {
  constexpr uint8_t kNotSupported = 1;
  constexpr uint8_t kSupported = 3;
  constexpr uint8_t kHasTimeouts = 0x80;
  if (command == nullptr) return {0, kNotSupported, 0, 0};
  const auto opcode = static_cast<uint8_t>(command->opcode);
  const size_t cdb_bytes = CdbBytes(opcode);
  std::vector<uint8_t> bytes(4);
  bytes[1] = static_cast<uint8_t>(kSupported | (with_timeouts ? kHasTimeouts : 0));
  PutBe<uint16_t>(bytes, 2, static_cast<uint16_t>(cdb_bytes));
  bytes.push_back(opcode);
  bytes.insert(bytes.end(), command->usage.begin(),
               command->usage.begin() + static_cast<ptrdiff_t>(cdb_bytes - 1));
  if (command->action != kNoAction)  // the service action's own bits, not a mask of them
    bytes[5] = static_cast<uint8_t>((bytes[5] & ~0x1f) | command->action);
  if (with_timeouts) AppendTimeouts(bytes);
  return bytes;
}

}  // namespace

PersistentReservations::Access DiskAccessOf(const std::array<uint8_t, 16>& cdb) {
  const auto opcode = static_cast<Opcode>(cdb[0]);
  // Two that harm nobody in one of their forms.
  if (opcode == Opcode::kPreventAllowRemoval && (cdb[4] & 0x03) == 0) return Access::kNone;
  if (opcode == Opcode::kStartStopUnit && (cdb[4] & 0xf1) == 0x01) return Access::kStatus;
  for (const Command& command : kCommands) {
    if (command.opcode == opcode) return command.access;
  }
  return Access::kWrite;
}

tl::expected<std::vector<uint8_t>, Sense> ReportOperationCodes(const std::array<uint8_t, 16>& cdb,
                                                               bool can_unmap) {
  constexpr uint8_t kReportOperationCodes = 0x0c;
  enum Option : uint8_t { kAll = 0, kByOpcode = 1, kByAction = 2, kByEither = 3 };
  if ((cdb[1] & 0x1f) != kReportOperationCodes) return tl::make_unexpected(kInvalidFieldInCdb);
  const bool with_timeouts = (cdb[2] & 0x80) != 0;
  const uint8_t option = cdb[2] & 0x07;
  if (option > kByEither) return tl::make_unexpected(kInvalidFieldInCdb);
  if (option == kAll) return AllCommands(can_unmap, with_timeouts);
  const auto opcode = static_cast<Opcode>(cdb[3]);
  const uint16_t action = GetBe<uint16_t>(cdb, 4);
  const Command* found = nullptr;
  bool has_actions = false;
  for (const Command& command : kCommands) {
    if (command.opcode != opcode || (opcode == Opcode::kUnmap && !can_unmap)) continue;
    has_actions = command.action != kNoAction;
    if (!has_actions || command.action == action) found = &command;
  }
  if (option == kByOpcode && has_actions) return tl::make_unexpected(kInvalidFieldInCdb);
  if (option == kByAction && found != nullptr && !has_actions)
    return tl::make_unexpected(kInvalidFieldInCdb);
  if (option == kByEither && !has_actions && action != 0) found = nullptr;
  return OneCommand(found, with_timeouts);
}

}  // namespace kvmbus::virtdev::scsi
