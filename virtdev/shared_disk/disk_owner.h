// SPDX-License-Identifier: Apache-2.0
/// \file
/// DiskOwner: one disk for the virtual machines of several processes, with one set of reservations.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "virtdev/disk/disk_io.h"
#include "virtdev/scsi/persistent_reservations.h"
#include "virtdev/shared_disk/owner_queue.h"
#include "vmm/event/loop.h"
#include "vmm/shared_disk/protocol.h"

namespace kvmbus::virtdev {

namespace shared_disk = vmm::shared_disk;

/// Serves a socket (protocol.h). Home: the main loop; queues live on the io loops. The loops must
/// run (or, in tests, be turned by hand) until this object is gone.
class DiskOwner {
 public:
  static constexpr size_t kMaxPeers = 256;            ///< connections but queues
  static constexpr size_t kMaxQueuesPerClient = 256;  ///< of one virtual machine

  using Done = std::function<void(const vmm::Result<void>&)>;

  struct Options {
    std::string socket_path;
    std::shared_ptr<DiskIo> disk;
    std::shared_ptr<PersistentReservations> reservations;
    uint64_t first_wait_ns = 10'000'000'000;  ///< for the first connection, before on_idle
    uint64_t idle_ns = 100'000'000;           ///< after the last connection, before on_idle
    uint64_t hello_wait_ns = 10'000'000'000;  ///< for the first frame of a connection
    std::function<void()> on_idle;
    /// Makes the disk larger, at once or in time; `done` on the main loop. None: it stays as it is.
    std::function<void(uint64_t size_bytes, Done done)> grow;
  };

  /// Error kInvalidArgument: a disk of a size that SCSI cannot express.
  static vmm::Result<std::unique_ptr<DiskOwner>> Listen(Options options, vmm::Loop& main_loop,
                                                        std::vector<vmm::Loop*> io_loops);
  /// Ends all connections, waits for their commands; the disk has no queue left.
  ~DiskOwner();

  void VisitCounters(const vmm::CounterVisitor& visit) const;

 private:
  struct Peer {
    vmm::Fd socket;
    std::vector<uint8_t> in;
    std::vector<vmm::Fd> fds;
    vmm::Loop::TimerId timer = 0;
    shared_disk::Kind kind = {};  ///< none before its hello
    uint64_t token = 0;           ///< of a client
    vmm::Guid initiator;
    std::shared_ptr<OwnerClient> client;
  };
  struct Queue {
    std::shared_ptr<OwnerQueue> queue;
    uint64_t token = 0;  ///< its client's
  };

  DiskOwner(Options options, vmm::Loop& main_loop, std::vector<vmm::Loop*> io_loops);
  void Accept();
  void OnReady(uint64_t id);
  void OnHello(uint64_t id, const shared_disk::Hello& hello);
  vmm::Result<void> AdmitClient(Peer& peer, const shared_disk::Hello& hello);
  vmm::Result<void> AdmitQueue(uint64_t id, const shared_disk::Hello& hello);
  bool OnRequest(Peer& peer, const shared_disk::Request& request);
  void Grow(uint64_t id, uint64_t size_bytes);
  void Answer(uint64_t id, const vmm::Result<void>& admitted);
  shared_disk::HelloReply Describe(uint64_t token) const;
  void OnResized();
  void Break(uint64_t id, const char* what);
  void Drop(uint64_t id);
  void OnQueueEnded(uint64_t id);
  void CheckIdle();

  const Options options_;
  vmm::Loop& main_loop_;
  const std::vector<vmm::Loop*> io_loops_;
  const uint64_t owner_id_;
  vmm::Fd listener_;
  std::map<uint64_t, Peer> peers_;
  std::map<uint64_t, Queue> queues_;
  std::map<vmm::Guid, std::weak_ptr<OwnerClient>> present_;  ///< by initiator
  uint64_t next_id_ = 1;
  vmm::Loop::TimerId idle_timer_ = 0;
  bool used_ = false;  ///< somebody has connected
  vmm::Counter broken_;
  vmm::Counter refused_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvmbus::virtdev
