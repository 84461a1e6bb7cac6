// SPDX-License-Identifier: Apache-2.0
/// \file
/// RemoteDisk: a shared disk as one of its clients has it: the connection to its owner.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "virtdev/disk/qos/disk_qos.h"
#include "vmm/event/loop.h"
#include "vmm/memory/guest_memory.h"
#include "vmm/shared_disk/protocol.h"

namespace kvmbus::virtdev {

namespace shared_disk = vmm::shared_disk;

/// Its queues take whole SCSI commands (RemoteScsiDisk) and no other requests; the limits of its
/// Storage QoS are this client's. Home: the main loop, but
/// for OpenQueue and what is said to be for any thread. An owner that dies is waited for: commands
/// stay under way until there is another one, and then the guest is asked to repeat them.
class RemoteDisk final : public DiskIo, public std::enable_shared_from_this<RemoteDisk> {
 public:
  struct Options {
    std::string socket_path;
    vmm::Guid initiator;  ///< the virtual machine's id
    uint64_t retry_ns = 20'000'000;
    /// Without an owner for so long, commands fail; it is looked for all the same.
    uint64_t patience_ns = 30'000'000'000;
    uint64_t connect_ns = 5'000'000'000;  ///< for the first connection
    int answer_ms = 5000;                 ///< that the owner may take for an answer
  };

  /// Waits for a former connection of the same machine to end. Errors: the owner's (kUnavailable:
  /// the machine has the disk already), kNotFound or kUnavailable (there is no owner),
  /// kDeadlineExceeded.
  static vmm::Result<std::shared_ptr<RemoteDisk>> Connect(Options options, vmm::GuestMemory& memory,
                                                          vmm::Loop& main_loop);
  ~RemoteDisk() override;

  // DiskIo
  const DiskInfo& info() const override { return info_; }
  std::string_view format() const override { return format_; }
  vmm::Result<std::unique_ptr<DiskQueue>> OpenQueue(vmm::Loop& loop) override;
  DiskQos* qos() override { return &qos_; }
  /// Leaves the owner, which makes durable what this client wrote.
  vmm::Result<void> Close() override;
  void VisitCounters(const vmm::CounterVisitor& visit) const override;
  void SetResizeListener(std::function<void()> changed) override { resized_ = std::move(changed); }

  /// Asks the owner, and waits for the answer. kUnavailable: it is away, try again.
  vmm::Result<shared_disk::Reply> Call(const shared_disk::Request& request);

  // Any thread.

  struct Link {
    enum class State { kUp, kAway, kGivenUp } state = State::kAway;
    uint64_t token = 0;  ///< for queues
  };
  Link link() const;
  /// Cheap: that of the link.
  uint64_t token() const { return token_.load(); }
  /// Cheap: the owner that gave out this token has not been lost, as far as is known.
  bool IsCurrent(uint64_t token) const { return token_.load() == token; }
  uint64_t size_bytes() const { return size_bytes_.load(std::memory_order_relaxed); }
  const std::string& socket_path() const { return options_.socket_path; }
  uint64_t patience_ns() const { return options_.patience_ns; }
  uint64_t retry_ns() const { return options_.retry_ns; }

  /// The guest is about to be told that it wrote (then look whether the owner IsCurrent still);
  /// that all it had been told of when `written` was read is durable.
  void NoteWritten() { written_.fetch_add(1); }
  uint64_t written() const { return written_.load(std::memory_order_relaxed); }
  void NoteFlushed(uint64_t written);
  /// True once after an owner died with writes of this client that had not been flushed: the guest
  /// must not be told by its next flush that they are durable.
  bool TakeLostWrites();
  /// True once after the owner was replaced: what reservations did not persist is gone.
  bool TakePowerLoss();

  vmm::Counter& lost_queues() { return lost_queues_; }
  vmm::Counter& bad_outcomes() { return bad_outcomes_; }

 private:
  RemoteDisk(Options options, vmm::GuestMemory& memory, vmm::Loop& main_loop);
  vmm::Result<void> Greet();
  void TakeOver(const shared_disk::HelloReply& reply);
  void OnReady();
  vmm::Result<std::optional<shared_disk::Reply>> TakeReply();
  void HandleEvent(const shared_disk::Reply& event);
  void Lose(std::string_view why);
  void Retry();
  void SetSize(uint64_t bytes);
  void SetLink(Link::State state, uint64_t token);

  const Options options_;
  vmm::GuestMemory& memory_;
  vmm::Loop& main_loop_;
  vmm::Fd socket_;
  std::vector<uint8_t> in_;
  uint64_t owner_ = 0;
  uint64_t lost_at_ns_ = 0;
  vmm::Loop::TimerId retry_timer_ = 0;
  DiskInfo info_;
  std::string format_;
  std::function<void()> resized_;

  mutable std::mutex mutex_;  // guards link_
  Link link_;
  std::atomic<uint64_t> token_{0};       ///< of link_
  std::atomic<uint64_t> size_bytes_{0};  ///< of info_
  std::atomic<uint64_t> written_{0};
  std::atomic<uint64_t> flushed_{0};
  std::atomic<bool> lost_writes_{false};
  std::atomic<bool> power_loss_{false};
  DiskQos qos_;
  vmm::Counter lost_owners_;
  vmm::Counter lost_queues_;
  vmm::Counter bad_outcomes_;
};

}  // namespace kvmbus::virtdev
