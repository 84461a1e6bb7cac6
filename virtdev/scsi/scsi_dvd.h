// SPDX-License-Identifier: Apache-2.0
/// \file
/// ScsiDvd: one logical unit, a DVD drive, whose disc (an ISO image) comes and goes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

#include "virtdev/disk/disk_io.h"
#include "virtdev/scsi/dvd_data.h"
#include "virtdev/scsi/scsi_unit.h"
#include "vmm/guid/guid.h"

namespace kvmbus::virtdev {

/// Any thread executes commands; the host changes discs on one. Its state has a lock.
class ScsiDvd final : public ScsiUnit {
 public:
  /// What the guest has not polled for yet; reported in this order.
  enum Event : uint8_t { kEjectRequest = 1, kRemoval = 2, kNewMedium = 4 };

  /// What is kept over a save.
  struct State {
    bool tray_open = false;  ///< with the disc on it, if there is one
    bool locked = false;
    bool locked_persistently = false;
    uint8_t events = 0;
    bool attention = false;
    scsi::Sense stored_sense;
    vmm::Guid medium;     ///< zero without one
    uint32_t blocks = 0;  ///< 0: no disc
    bool operator==(const State&) const = default;
  };

  /// `id` names the drive to guests. `on_tray_opened` hears, on the thread of the command, that the
  /// guest let the disc go.
  ScsiDvd(vmm::Guid id, std::function<void()> on_tray_opened)
      : id_(id), on_tray_opened_(std::move(on_tray_opened)) {}

  /// kInvalidArgument: no image of a disc.
  static vmm::Result<void> CheckMedium(const DiskInfo& info);

  /// The host puts a disc in, or takes it out (null), whatever the guest thinks of it; the tray is
  /// closed afterwards. Returns what was in. Queues of it may live on for a while.
  std::shared_ptr<DiskIo> SetMedium(std::shared_ptr<DiskIo> medium);
  /// True: SetMedium would take nothing away that the guest holds. Else the guest has been asked to
  /// let it go, and on_tray_opened says when it did.
  bool RequestRemoval();

  std::shared_ptr<DiskIo> medium() const;
  /// The guest holds the disc: a polite host asks first.
  bool IsHeld() const;

  /// As after power-on, but that the tray is where it was: no reset moves it.
  void Reset();
  State Save() const;
  /// Checked by the caller with IsValid; another disc than the saved one is a change of discs.
  void Restore(const State& state);
  static bool IsValid(const State& state);

 private:
  /// What a command sees, taken at once.
  struct View {
    const DiskIo* medium = nullptr;  ///< null: none within reach
    uint32_t blocks = 0;
    bool tray_open = false;
    bool locked = false;
  };

  Step Dispatch(ScsiCommand& command) override;
  Step DispatchMedium(ScsiCommand& command, const View& view);
  View Look() const;
  bool TakeAttention();
  Step Answer(ScsiCommand& command, const scsi::DvdAnswer& answer, size_t allocation_length);

  Step Inquiry(ScsiCommand& command);
  Step RequestSense(ScsiCommand& command);
  Step ModeSense(ScsiCommand& command, const View& view);
  Step ModeSelect(ScsiCommand& command, const View& view);
  Step StartStop(ScsiCommand& command);
  Step MoveTray(ScsiCommand& command, bool open);
  Step PreventRemoval(ScsiCommand& command);
  Step GetEventStatus(ScsiCommand& command);
  Step SetStreaming(ScsiCommand& command);
  Step ReadCapacity(ScsiCommand& command, const View& view);
  Step Read(ScsiCommand& command, const View& view);
  Step FinishRead(ScsiCommand& command);

  void NoteRemoval();
  void NoteInsertion();
  bool HoldsLocked() const { return state_.locked || state_.locked_persistently; }
  bool IsReachable() const { return medium_ != nullptr && !state_.tray_open; }

  const vmm::Guid id_;
  const std::function<void()> on_tray_opened_;
  mutable std::mutex mutex_;  // guards all below
  std::shared_ptr<DiskIo> medium_;
  State state_;  ///< but stored_sense, medium and blocks
};

}  // namespace kvmbus::virtdev
