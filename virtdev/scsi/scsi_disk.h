// SPDX-License-Identifier: Apache-2.0
/// \file
/// ScsiDisk: one logical unit, a disk, executing SCSI command blocks against a DiskIo.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "virtdev/disk/disk_io.h"
#include "virtdev/scsi/persistent_reservations.h"
#include "virtdev/scsi/scsi_command.h"
#include "virtdev/scsi/scsi_unit.h"

namespace kvmbus::virtdev {

/// One initiator's view of a disk. What its threads share (stored sense, the size last reported) is
/// atomic; reservations have a lock of their own, which is taken while somebody reserves.
class ScsiDisk final : public ScsiUnit {
 public:
  struct Options {
    /// Null: the disk has no other initiator, and nothing outlives a loss of power.
    std::shared_ptr<PersistentReservations> reservations;
    PersistentReservations::Initiator initiator;
    bool shared = false;  ///< others use `reservations` too
  };
  /// What is kept over a save.
  struct State {
    uint64_t reported_sectors = 0;
    scsi::Sense stored_sense;
    bool operator==(const State&) const = default;
  };

  /// Error kInvalidArgument: a disk of a size or sector size that SCSI cannot express.
  static vmm::Result<std::shared_ptr<ScsiDisk>> Create(std::shared_ptr<DiskIo> disk,
                                                       Options options);

  const std::shared_ptr<DiskIo>& io() const { return io_; }
  const DiskInfo& info() const { return info_; }
  PersistentReservations& reservations() { return *options_.reservations; }
  /// Its reservations are of another place than the virtual machine's saved state.
  bool is_shared() const { return options_.shared; }

  /// Any thread: the back end's size changed, info() has the new one. The next command but INQUIRY
  /// ends with a unit attention.
  void NotifyResized();
  /// As after power-on.
  void Reset();
  State Save() const;
  /// Checked by the caller with IsValid; a size that differs from the disk's is a resize.
  void Restore(const State& state);
  static bool IsValid(const State& state);

 private:
  ScsiDisk(std::shared_ptr<DiskIo> disk, Options options);

  // scsi_disk.cc: which command it is, and whether it may run.
  Step Dispatch(ScsiCommand& command) override;
  Step DispatchBlock(ScsiCommand& command);
  Step DispatchControl(ScsiCommand& command);
  void OnFinished(ScsiCommand& command) override;
  std::optional<scsi::Sense> TakeAttention();
  /// A command of many steps makes no more: it is interrupted or aborted.
  bool MustEnd(const ScsiCommand& command) const;
  uint64_t sectors() const { return sectors_.load(std::memory_order_relaxed); }

  // scsi_disk_control.cc: commands that touch no block.
  Step RequestSense(ScsiCommand& command);
  Step Inquiry(ScsiCommand& command);
  Step ModeSense(ScsiCommand& command);
  Step ModeSelect(ScsiCommand& command);
  Step StartStop(ScsiCommand& command);
  Step SendDiagnostic(ScsiCommand& command);
  Step ReadCapacity10(ScsiCommand& command);
  Step ServiceActionIn(ScsiCommand& command);
  Step MaintenanceIn(ScsiCommand& command);

  // scsi_disk_reservations.cc: who may use the disk.
  Step Reserve(ScsiCommand& command);
  Step Release(ScsiCommand& command);
  Step PersistentReserveIn(ScsiCommand& command);
  Step PersistentReserveOut(ScsiCommand& command);
  Step AwaitAborted(ScsiCommand& command);
  Step Conclude(ScsiCommand& command, const PersistentReservations::Verdict& verdict);

  // scsi_disk_block.cc: reading, writing, flushing.
  bool CheckExtent(ScsiCommand& command, ScsiCommand::Extent* extent, Step* failed);
  void ClampToBuffer(ScsiCommand& command, ScsiCommand::Extent* extent);
  Step Read(ScsiCommand& command);
  Step ReadAfterFlush(ScsiCommand& command);
  Step FinishRead(ScsiCommand& command);
  Step Write(ScsiCommand& command);
  Step FinishWrite(ScsiCommand& command);
  Step SynchronizeCache(ScsiCommand& command);
  Step FinishWithoutData(ScsiCommand& command);

  // scsi_disk_verify.cc: reading back.
  Step WriteAndVerify(ScsiCommand& command);
  Step Verify(ScsiCommand& command);
  Step VerifyNext(ScsiCommand& command);
  Step CheckVerified(ScsiCommand& command);

  // scsi_disk_provisioning.cc: many blocks at once.
  Step WriteSame(ScsiCommand& command);
  Step WritePatternNext(ScsiCommand& command);
  Step Unmap(ScsiCommand& command);
  Step UnmapNext(ScsiCommand& command);
  Step FormatUnit(ScsiCommand& command);
  Step FormatNext(ScsiCommand& command);

  const std::shared_ptr<DiskIo> io_;
  const Options options_;
  const DiskInfo info_;  ///< as at the attach; the size is in sectors_
  std::atomic<uint64_t> sectors_;
  std::atomic<uint64_t> reported_sectors_;
};

}  // namespace kvmbus::virtdev
