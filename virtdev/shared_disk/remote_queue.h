// SPDX-License-Identifier: Apache-2.0
/// \file
/// RemoteQueue: a queue of a shared disk, which forwards SCSI commands to the disk's owner.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "virtdev/disk/disk_io.h"
#include "virtdev/scsi/scsi_command.h"
#include "virtdev/shared_disk/disk_ring_unsafe.h"
#include "virtdev/shared_disk/remote_disk.h"
#include "vmm/event/loop.h"
#include "vmm/shared_disk/protocol.h"

namespace kvmbus::virtdev {

class RemoteQueue final : public DiskQueue {
 public:
  RemoteQueue(std::shared_ptr<RemoteDisk> disk, vmm::Loop& loop);
  ~RemoteQueue() override;

  // DiskQueue
  /// Sends the request's command at the next Kick. It completes when the command has its status,
  /// sense, overrun and bytes moved. One without a command fails.
  void Submit(DiskRequest& request) override;
  void Kick() override;
  /// Without an owner the guest is asked to repeat what is under way.
  void Drain() override;

 private:
  enum class State { kAway, kGreeting, kUp };
  struct Flight {
    ScsiCommand* command = nullptr;
    DiskRequest* request = nullptr;
  };

  bool Forward(ScsiCommand& command, DiskRequest& request);
  void Greet();
  void Retry();
  void ScheduleRetry();
  void ArmRetry();
  bool HasGivenUp() const;
  void OnReady();
  bool TakeHelloReply();
  void TakeOutcomes();
  bool Finish(uint32_t slot);
  void Send(const Flight& flight);
  void Lose();
  void EndAll(void (*set_status)(ScsiCommand&));
  bool busy() const { return free_.size() != DiskRing::kSlots || !waiting_.empty(); }

  const std::shared_ptr<RemoteDisk> disk_;
  vmm::Loop& loop_;
  State state_ = State::kAway;
  vmm::Fd socket_;
  std::unique_ptr<DiskRing> ring_;  ///< of this connection
  shared_disk::HelloReply reply_;
  size_t reply_bytes_ = 0;
  std::array<Flight, DiskRing::kSlots> flights_;  ///< by slot
  std::vector<uint32_t> free_;       ///< slots; the last used first, for their memory is there
  std::vector<Flight> waiting_;      ///< for an owner
  std::vector<Flight> interrupted_;  ///< the owner that had them died
  bool pushed_ = false;
  bool lost_ = false;       ///< had no owner for a while
  uint64_t away_since_ns_;  ///< unless it is up
  uint64_t token_ = 0;      ///< of this connection's owner
  vmm::Loop::TimerId retry_timer_ = 0;
};

}  // namespace kvmbus::virtdev
