// SPDX-License-Identifier: Apache-2.0
/// \file
/// DiskRing: the memory through which SCSI commands go from a client of a shared disk to its owner
/// and their results back.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "virtdev/scsi/guest_buffer_unsafe.h"
#include "virtdev/scsi/scsi_protocol.h"
#include "vmm/os/fd.h"
#include "vmm/result/result.h"

namespace kvmbus::virtdev {

/// A memory file with a table of commands and two rings of numbers of its slots: submitted by the
/// client, completed by the owner. Each side takes the other for an enemy: whatever lies there is
/// copied once and then checked. Whose turn it is to sleep is noted there too, so that a busy peer
/// costs no system call; the doorbell is a byte on the connection's socket. One thread a side.
class DiskRing {
 public:
  static constexpr uint32_t kSlots = 256;        ///< commands under way
  static constexpr uint32_t kMaxSegments = 272;  ///< 1 MiB of scattered pages, and some

  struct Segment {
    uint64_t gpa;
    uint64_t bytes;
  };
  /// As the client writes it.
  struct Command {
    std::array<uint8_t, 16> cdb;
    uint8_t cdb_length;
    uint8_t data_in;
    uint16_t segments;
  };
  /// As the owner writes it.
  struct Outcome {
    uint64_t bytes_moved;
    uint8_t status;
    uint8_t sense_key, asc, ascq;
    uint8_t overrun;
  };

  /// The client's.
  static vmm::Result<std::unique_ptr<DiskRing>> Create();
  /// The owner's, of what a client sent. kInvalidArgument: not such a memory file.
  static vmm::Result<std::unique_ptr<DiskRing>> Adopt(vmm::Fd memfd);
  ~DiskRing();
  DiskRing(const DiskRing&) = delete;
  DiskRing& operator=(const DiskRing&) = delete;

  int fd() const { return memfd_.get(); }

  // The client's half.

  /// False: the buffer has too many segments. The slot is the caller's until its outcome came.
  [[nodiscard]] bool PutCommand(uint32_t slot, Command command, const GuestBuffer& data);
  Outcome TakeOutcome(uint32_t slot) const;
  /// Makes the owner end long commands early.
  void Interrupt();

  // The owner's half.

  /// What the client wrote, copied. False: more segments than there may be.
  [[nodiscard]] bool TakeCommand(uint32_t slot, Command* command,
                                 std::vector<Segment>* segments) const;
  void PutOutcome(uint32_t slot, const Outcome& outcome);
  /// True once for each time that the client interrupted.
  bool TakeInterrupt();

  // Both.

  /// To the peer, at the next Publish. Never more than kSlots that the peer has not answered.
  void Push(uint32_t slot);
  /// Shows the peer what was pushed. True: it sleeps, ring the doorbell.
  [[nodiscard]] bool Publish();
  enum class Popped { kSlot, kNothing, kBroken };
  /// The next of the peer's. kBroken: the peer writes nonsense.
  Popped Pop(uint32_t* slot);
  /// Before waiting for the doorbell. False: something has come, Pop again.
  [[nodiscard]] bool Sleep();

 private:
  struct Direction;
  struct Slot;
  struct Layout;

  DiskRing(vmm::Fd memfd, Layout* layout, bool client);
  static vmm::Result<std::unique_ptr<DiskRing>> Map(vmm::Fd memfd, bool client);

  const vmm::Fd memfd_;
  Layout* const layout_;
  Direction& out_;
  Direction& in_;
  uint32_t pushed_ = 0;  ///< counts on; modulo kSlots it is a place
  uint32_t popped_ = 0;
};

}  // namespace kvmbus::virtdev
