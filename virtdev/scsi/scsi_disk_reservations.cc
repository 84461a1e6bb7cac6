// SPDX-License-Identifier: Apache-2.0
// The commands by which initiators reserve a disk.
#include "virtdev/scsi/scsi_disk.h"

namespace kvmbus::virtdev {

ScsiDisk::Step ScsiDisk::Conclude(ScsiCommand& command,
                                  const PersistentReservations::Verdict& verdict) {
  if (verdict.good()) return Good(command);
  if (verdict.status == scsi::Status::kCheckCondition) return Fail(command, verdict.sense);
  return End(command, verdict.status);
}

/// Of the whole disk, for the initiator itself: extents and third parties are long obsolete.
ScsiDisk::Step ScsiDisk::Reserve(ScsiCommand& command) {
  constexpr uint8_t kThirdPartyOrExtent = 0x1f;
  if ((command.cdb[1] & kThirdPartyOrExtent) != 0) return Fail(command, scsi::kInvalidFieldInCdb);
  return Conclude(command, options_.reservations->Reserve(options_.initiator));
}

ScsiDisk::Step ScsiDisk::Release(ScsiCommand& command) {
  constexpr uint8_t kThirdPartyOrExtent = 0x1f;
  if ((command.cdb[1] & kThirdPartyOrExtent) != 0) return Fail(command, scsi::kInvalidFieldInCdb);
  return Conclude(command, options_.reservations->Release(options_.initiator));
}

ScsiDisk::Step ScsiDisk::PersistentReserveIn(ScsiCommand& command) {
  std::vector<uint8_t> answer;
  const auto verdict = options_.reservations->HandleIn(command.cdb[1] & 0x1f, &answer);
  if (!verdict.good()) return Conclude(command, verdict);
  return Reply(command, answer, scsi::GetBe<uint16_t>(command.cdb, 7));
}

ScsiDisk::Step ScsiDisk::PersistentReserveOut(ScsiCommand& command) {
  constexpr size_t kListBytes = 24;
  constexpr uint8_t kSpecifyInitiators = 0x08;
  constexpr uint8_t kAllTargetPorts = 0x04;
  constexpr uint8_t kPersist = 0x01;
  std::array<uint8_t, kListBytes> list{};
  if (scsi::GetBe<uint32_t>(command.cdb, 5) != kListBytes || command.data_in ||
      command.data.CopyIn(0, list) != kListBytes)
    return Fail(command, scsi::kParameterListLengthError);
  PersistentReservations::OutRequest request;
  request.action = command.cdb[1] & 0x1f;
  request.scope = command.cdb[2] >> 4;
  request.type = command.cdb[2] & 0x0f;
  request.key = scsi::GetBe<uint64_t>(list, 0);
  request.action_key = scsi::GetBe<uint64_t>(list, 8);
  request.specify_initiators = (list[20] & kSpecifyInitiators) != 0;
  request.all_target_ports = (list[20] & kAllTargetPorts) != 0;
  request.persist = (list[20] & kPersist) != 0;
  const auto verdict = options_.reservations->HandleOut(options_.initiator, request);
  if (!verdict.good()) return Conclude(command, verdict);
  command.data.Truncate(kListBytes);
  using Out = PersistentReservations::Out;
  if (static_cast<Out>(request.action) == Out::kPreemptAndAbort) return AwaitAborted(command);
  return Good(command, kListBytes);
}

/// What the others had under way may still reach the disk; the initiator takes our GOOD for the
/// promise that it no longer does. An interrupt does not end the wait: asked a second time, there
/// would be nobody to preempt.
ScsiDisk::Step ScsiDisk::AwaitAborted(ScsiCommand& command) {
  if (command.abandoned_) return End(command, scsi::Status::kBusy);
  if (options_.reservations->AbortsAreDone()) return Good(command, command.data.size());
  return Pause(command, &ScsiDisk::AwaitAborted);
}

}  // namespace kvmbus::virtdev
