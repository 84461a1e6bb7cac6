// SPDX-License-Identifier: Apache-2.0
/// \file
/// ScsiUnit: what every logical unit does with a command block, whatever it is: the frame.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>

#include "virtdev/disk/disk_io.h"
#include "virtdev/scsi/scsi_command.h"

namespace kvmbus::virtdev {

/// Any thread may execute commands, each on a queue of its own thread. Outlives its commands.
class ScsiUnit {
 public:
  virtual ~ScsiUnit() = default;
  ScsiUnit(const ScsiUnit&) = delete;
  ScsiUnit& operator=(const ScsiUnit&) = delete;

  /// Starts the command; `queue` is a queue of `medium`, both null for a unit that has none in it.
  /// The caller kicks the queue after a batch.
  void Execute(ScsiCommand& command, DiskQueue* queue, const DiskIo* medium);

 protected:
  friend class ScsiCommand;
  using Step = ScsiCommand::Step;

  ScsiUnit() = default;

  /// The first step of a command.
  virtual Step Dispatch(ScsiCommand& command) = 0;
  /// The last look at a command that is done, on its way back.
  virtual void OnFinished(ScsiCommand&) {}

  Step Good(ScsiCommand& command, uint64_t bytes_moved = 0);
  Step Fail(ScsiCommand& command, const scsi::Sense& sense);
  /// Ends it with a status that has no sense.
  Step End(ScsiCommand& command, scsi::Status status);
  Step Reply(ScsiCommand& command, std::span<const uint8_t> bytes, size_t allocation_length);
  template <typename Unit>
  Step Submit(ScsiCommand& command, DiskRequest::Op op, ScsiCommand::Extent extent,
              Step (Unit::*next)(ScsiCommand&)) {
    return SubmitRequest(command, op, extent, static_cast<ScsiCommand::Continuation>(next));
  }

  /// `next` runs in a moment: what it waits for is not this command's to hear of.
  template <typename Unit>
  Step Pause(ScsiCommand& command, Step (Unit::*next)(ScsiCommand&)) {
    return PauseUntilNext(command, static_cast<ScsiCommand::Continuation>(next));
  }

  scsi::Sense stored_sense() const;
  void set_stored_sense(const scsi::Sense& sense);
  scsi::Sense TakeStoredSense();

 private:
  bool Run(ScsiCommand& command, ScsiCommand::Continuation step);
  void OnRequestDone(ScsiCommand& command);
  Step Start(ScsiCommand& command);
  Step SubmitRequest(ScsiCommand& command, DiskRequest::Op op, ScsiCommand::Extent extent,
                     ScsiCommand::Continuation next);
  Step PauseUntilNext(ScsiCommand& command, ScsiCommand::Continuation next);
  Step FailRequest(ScsiCommand& command);

  std::atomic<uint32_t> stored_sense_{0};  ///< key, ASC, ASCQ from the top byte but one down
};

}  // namespace kvmbus::virtdev
