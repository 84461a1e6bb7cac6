// SPDX-License-Identifier: Apache-2.0
#include "virtdev/scsi/scsi_disk.h"

#include <bit>

#include "virtdev/scsi/command_set.h"

namespace kvmbus::virtdev {

using scsi::Opcode;
using scsi::Sense;

namespace {

constexpr uint32_t kMaxSectorBytes = 4096;

bool SizeIsValid(uint64_t bytes, uint32_t sector) { return bytes != 0 && bytes % sector == 0; }

}  // namespace

vmm::Result<std::shared_ptr<ScsiDisk>> ScsiDisk::Create(std::shared_ptr<DiskIo> disk,
                                                        Options options) {
  const DiskInfo& info = disk->info();
  const uint32_t sector = info.logical_sector_bytes;
  if (!std::has_single_bit(sector) || sector < 512 || sector > kMaxSectorBytes)
    return vmm::MakeError(vmm::Code::kInvalidArgument,
                          "the disk has sectors of {} bytes; SCSI disks have 512 to {}", sector,
                          kMaxSectorBytes);
  if (!std::has_single_bit(info.physical_sector_bytes) || info.physical_sector_bytes < sector)
    return vmm::MakeError(vmm::Code::kInvalidArgument,
                          "the disk has physical sectors of {} bytes under logical ones of {}",
                          info.physical_sector_bytes, sector);
  if (!SizeIsValid(info.size_bytes, sector))
    return vmm::MakeError(
        vmm::Code::kInvalidArgument,
        "the disk has {} bytes, which is not a positive number of {}-byte sectors", info.size_bytes,
        sector);
  if (options.reservations == nullptr)
    options.reservations = std::make_shared<PersistentReservations>();
  return std::shared_ptr<ScsiDisk>(new ScsiDisk(std::move(disk), std::move(options)));
}

ScsiDisk::ScsiDisk(std::shared_ptr<DiskIo> disk, Options options)
    : io_(std::move(disk)),
      options_(std::move(options)),
      info_(io_->info()),
      sectors_(info_.size_bytes / info_.logical_sector_bytes),
      reported_sectors_(sectors_.load()) {}

void ScsiDisk::NotifyResized() {
  const uint64_t bytes = io_->info().size_bytes;
  if (SizeIsValid(bytes, info_.logical_sector_bytes))
    sectors_.store(bytes / info_.logical_sector_bytes, std::memory_order_relaxed);
}

void ScsiDisk::Reset() {
  reported_sectors_ = sectors();
  set_stored_sense(scsi::kNoSense);
  if (options_.shared)
    options_.reservations->ResetInitiator(options_.initiator);
  else
    options_.reservations->PowerCycle();
}

ScsiDisk::State ScsiDisk::Save() const { return {reported_sectors_.load(), stored_sense()}; }

bool ScsiDisk::IsValid(const State& state) {
  return state.reported_sectors != 0 && static_cast<uint8_t>(state.stored_sense.key) <= 0xf;
}

void ScsiDisk::Restore(const State& state) {
  KVMBUS_ASSERT(IsValid(state));
  reported_sectors_ = state.reported_sectors;
  set_stored_sense(state.stored_sense);
}

/// What happened to the disk that this initiator has not heard of, once.
std::optional<Sense> ScsiDisk::TakeAttention() {
  const uint64_t current = sectors();
  uint64_t reported = reported_sectors_.load(std::memory_order_relaxed);
  if (reported != current && reported_sectors_.compare_exchange_strong(reported, current))
    return scsi::kCapacityChanged;
  return options_.reservations->TakeAttention(options_.initiator);
}

ScsiDisk::Step ScsiDisk::Dispatch(ScsiCommand& command) {
  const auto opcode = static_cast<Opcode>(command.cdb[0]);
  if (opcode == Opcode::kInquiry) return Inquiry(command);
  if (opcode == Opcode::kRequestSense) return RequestSense(command);
  if (const auto attention = TakeAttention()) return Fail(command, *attention);
  switch (opcode) {
    // These look at the reservations themselves, and no PREEMPT AND ABORT ends them.
    case Opcode::kReserve6:
    case Opcode::kReserve10:
      return Reserve(command);
    case Opcode::kRelease6:
    case Opcode::kRelease10:
      return Release(command);
    case Opcode::kPersistentReserveIn:
      return PersistentReserveIn(command);
    case Opcode::kPersistentReserveOut:
      return PersistentReserveOut(command);
    default:
      break;
  }
  if (options_.shared) {
    command.abort_epoch_ = options_.reservations->BeginCommand(options_.initiator);
    command.counted_ = true;
  }
  if (!options_.reservations->IsQuiet() &&
      options_.reservations->Conflicts(options_.initiator, scsi::DiskAccessOf(command.cdb)))
    return End(command, scsi::Status::kReservationConflict);
  return DispatchBlock(command);
}

bool ScsiDisk::MustEnd(const ScsiCommand& command) const {
  return command.interrupted_ ||
         (command.counted_ &&
          options_.reservations->IsAborted(options_.initiator, command.abort_epoch_));
}

void ScsiDisk::OnFinished(ScsiCommand& command) {
  if (!command.counted_) return;
  command.counted_ = false;
  if (options_.reservations->EndCommand(options_.initiator, command.abort_epoch_)) return;
  command.sense = scsi::kNoSense;  // whatever came of it
  (void)End(command, scsi::Status::kTaskAborted);
}

ScsiDisk::Step ScsiDisk::DispatchBlock(ScsiCommand& command) {
  switch (static_cast<Opcode>(command.cdb[0])) {
    case Opcode::kRead6:
    case Opcode::kRead10:
    case Opcode::kRead12:
    case Opcode::kRead16:
      return Read(command);
    case Opcode::kWrite6:
    case Opcode::kWrite10:
    case Opcode::kWrite12:
    case Opcode::kWrite16:
      return Write(command);
    case Opcode::kSynchronizeCache10:
    case Opcode::kSynchronizeCache16:
      return SynchronizeCache(command);
    case Opcode::kUnmap:
      return Unmap(command);
    case Opcode::kWriteSame10:
    case Opcode::kWriteSame16:
      return WriteSame(command);
    case Opcode::kVerify10:
    case Opcode::kVerify12:
    case Opcode::kVerify16:
      return Verify(command);
    case Opcode::kWriteAndVerify10:
    case Opcode::kWriteAndVerify12:
    case Opcode::kWriteAndVerify16:
      return WriteAndVerify(command);
    default:
      return DispatchControl(command);
  }
}

ScsiDisk::Step ScsiDisk::DispatchControl(ScsiCommand& command) {
  switch (static_cast<Opcode>(command.cdb[0])) {
    case Opcode::kTestUnitReady:
    case Opcode::kPreventAllowRemoval:  // there is no tray to lock
      return Good(command);
    case Opcode::kFormatUnit:
      return FormatUnit(command);
    case Opcode::kModeSense6:
    case Opcode::kModeSense10:
      return ModeSense(command);
    case Opcode::kModeSelect6:
    case Opcode::kModeSelect10:
      return ModeSelect(command);
    case Opcode::kStartStopUnit:
      return StartStop(command);
    case Opcode::kSendDiagnostic:
      return SendDiagnostic(command);
    case Opcode::kReadCapacity10:
      return ReadCapacity10(command);
    case Opcode::kServiceActionIn16:
      return ServiceActionIn(command);
    case Opcode::kMaintenanceIn:
      return MaintenanceIn(command);
    default:
      return Fail(command, scsi::kInvalidOpcode);
  }
}

ScsiDisk::Step ScsiDisk::RequestSense(ScsiCommand& command) {
  if ((command.cdb[1] & 0x01) != 0)  // DESC: the descriptor format
    return Fail(command, scsi::kInvalidFieldInCdb);
  const auto attention = TakeAttention();
  return Reply(command, scsi::FixedSense(attention ? *attention : TakeStoredSense()),
               command.cdb[4]);
}

}  // namespace kvmbus::virtdev
