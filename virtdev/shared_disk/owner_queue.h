// SPDX-License-Identifier: Apache-2.0
/// \file
/// OwnerQueue: the owner's side of one queue of a client of a shared disk.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "virtdev/scsi/scsi_command.h"
#include "virtdev/scsi/scsi_disk.h"
#include "virtdev/shared_disk/disk_ring_unsafe.h"
#include "vmm/event/loop.h"
#include "vmm/memory/guest_memory.h"

namespace kvmbus::virtdev {

/// A virtual machine that has the disk: its memory, and the disk as it sees it. Held by its
/// connections; gone with the last command of the last of them.
struct OwnerClient {
  OwnerClient(std::unique_ptr<vmm::GuestMemory> its_memory, std::shared_ptr<ScsiDisk> its_disk)
      : memory(std::move(its_memory)), disk(std::move(its_disk)) {}
  /// What it registered and reserved stays; it may come again.
  ~OwnerClient() { disk->Reset(); }

  const std::unique_ptr<vmm::GuestMemory> memory;
  const std::shared_ptr<ScsiDisk> disk;
};

/// Home: its io loop, after it is made. Whatever the client writes into the ring is taken for an
/// attack: nonsense ends the connection.
class OwnerQueue final : public std::enable_shared_from_this<OwnerQueue>,
                         private ScsiCompletion,
                         private DiskCompletion {
 public:
  static constexpr uint64_t kMaxTransferBytes = 4u << 20;  ///< of a command

  /// `ended` runs once on the loop, when the client has gone, or Stop was called, and none of its
  /// commands is under way. `broken` counts clients that were thrown out.
  OwnerQueue(std::shared_ptr<OwnerClient> client, vmm::Fd socket, std::unique_ptr<DiskRing> ring,
             vmm::Loop& loop, vmm::Counter& broken, std::function<void()> ended);
  ~OwnerQueue() override;

  vmm::Loop& loop() { return loop_; }
  /// Sends `reply`, or why there can be no queue, and serves the ring.
  void Start(const std::vector<uint8_t>& reply);
  /// Takes no more commands and ends.
  void Stop();
  /// Stop, and it has ended when this returns.
  void StopAndWait();

 private:
  struct Command final : ScsiCommand {
    uint32_t slot = 0;
  };

  void OnReady();
  void Turn();
  bool Begin(uint32_t slot);
  void OnScsiComplete(ScsiCommand& command) override;
  void Publish();
  void Schedule();
  void Break(const char* what);
  void EndIfIdle();
  void OnDiskComplete(DiskRequest& request) override;

  std::shared_ptr<OwnerQueue> self() { return shared_from_this(); }

  std::shared_ptr<OwnerClient> client_;  ///< null: it has ended
  const vmm::Fd socket_;
  const std::unique_ptr<DiskRing> ring_;
  vmm::Loop& loop_;
  vmm::Counter& broken_;
  const std::function<void()> ended_;

  std::unique_ptr<DiskQueue> queue_;
  std::array<std::unique_ptr<Command>, DiskRing::kSlots> active_;  ///< by slot
  size_t under_way_ = 0;
  std::vector<std::unique_ptr<Command>> idle_;
  std::vector<DiskRing::Segment> segments_;
  DiskRequest flush_;  ///< the last request
  vmm::Loop::TimerId timer_ = 0;
  bool started_ = false;
  bool in_turn_ = false;
  bool stopping_ = false;
  bool flushing_ = false;
};

}  // namespace kvmbus::virtdev
