// SPDX-License-Identifier: Apache-2.0
/// \file
/// ScsiCommand: one command block with its data buffer on its way through a ScsiUnit.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "virtdev/disk/disk_io.h"
#include "virtdev/scsi/guest_buffer_unsafe.h"
#include "virtdev/scsi/scsi_protocol.h"
#include "vmm/event/loop.h"

namespace kvmbus::virtdev {

class ScsiCommand;
class ScsiUnit;

/// Told once for each command executed, on the thread of its queue; perhaps before Execute returns.
class ScsiCompletion {
 public:
  virtual ~ScsiCompletion() = default;
  virtual void OnScsiComplete(ScsiCommand& command) = 0;
};

/// Owned by the submitter, who fills in the first group, and reuses or destroys it only after
/// OnScsiComplete. Home: the thread of the queue that it is executed on.
class ScsiCommand : private DiskCompletion {
 public:
  ScsiCommand() = default;
  ScsiCommand(const ScsiCommand&) = delete;
  ScsiCommand& operator=(const ScsiCommand&) = delete;

  // What is asked.
  std::array<uint8_t, 16> cdb{};
  uint8_t cdb_length = 0;
  bool data_in =
      false;         ///< the buffer is for the device to fill; else it holds data for the device
  GuestBuffer data;  ///< as long as the initiator's transfer length
  ScsiCompletion* completion = nullptr;
  vmm::Loop* loop = nullptr;  ///< of the queue; for disks of several initiators, which wait in it

  // What came of it.
  scsi::Status status = scsi::Status::kGood;
  scsi::Sense sense;         ///< for kCheckCondition
  uint64_t bytes_moved = 0;  ///< from or into the buffer
  bool overrun = false;      ///< the command block asked for more than the buffer holds

  /// Makes a command of many steps end at the next one, with status BUSY: the initiator repeats it.
  void Interrupt() { interrupted_ = true; }
  /// Nobody hears any more what came of it: it ends at the next step, whatever it waits for.
  void Abandon();

 private:
  friend class ScsiUnit;
  friend class ScsiDisk;
  friend class ScsiDvd;
  friend class RemoteQueue;
  friend class RemoteScsiDisk;
  enum class Step { kFinished, kWaiting };
  using Continuation = Step (ScsiUnit::*)(ScsiCommand&);

  struct Extent {
    uint64_t offset = 0;  ///< bytes
    uint64_t length = 0;
  };

  void OnDiskComplete(DiskRequest& request) override;
  void EndPause();
  void ReleaseScratch();

  ScsiUnit* unit_ = nullptr;
  DiskQueue* queue_ = nullptr;      ///< of medium_
  const DiskIo* medium_ = nullptr;  ///< null: none in the unit
  DiskRequest request_;
  Continuation next_ = nullptr;   ///< runs when request_, or the pause, is done
  vmm::Loop::TimerId pause_ = 0;  ///< 0: none
  bool in_step_ = false;          ///< request_ may complete inside Submit
  bool request_done_ = false;
  bool interrupted_ = false;
  bool abandoned_ = false;
  bool counted_ = false;      ///< among its initiator's commands under way
  uint64_t abort_epoch_ = 0;  ///< of its initiator when it began
  // Of a remote disk.
  bool moves_blocks_ = false;    ///< more than the buffer has: its request's length says how many
  uint64_t written_before_ = 0;  ///< of a flush: the writes that it covers
  uint64_t owner_token_ = 0;     ///< of the owner when it began, then of the one that executed it

  // Of commands of many steps.
  Extent rest_;                   ///< what is still to be done
  uint64_t data_offset_ = 0;      ///< of rest_ within the buffer
  uint8_t byte_check_ = 0;        ///< BYTCHK
  std::vector<uint8_t> scratch_;  ///< blocks read back, or a pattern repeated
  std::vector<uint8_t> block_;    ///< the one block of WRITE SAME and of BYTCHK 3
  std::vector<iovec> scratch_iov_;
  std::vector<Extent> extents_;  ///< of UNMAP, in reverse
};

}  // namespace kvmbus::virtdev
