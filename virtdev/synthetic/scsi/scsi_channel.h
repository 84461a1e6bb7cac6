// SPDX-License-Identifier: Apache-2.0
/// \file
/// ScsiChannel: one open channel of a synthetic SCSI controller: ring in, requests, ring out.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "virtdev/disk/disk_io.h"
#include "virtdev/scsi/scsi_command.h"
#include "virtdev/scsi/scsi_unit.h"
#include "virtdev/synthetic/scsi/scsi_counters.h"
#include "virtdev/synthetic/scsi/storvsc_session.h"
#include "virtdev/vmbus/channel.h"
#include "vmm/event/loop.h"

namespace kvmbus::virtdev {

/// Home: its io loop, once it is built (on the main thread). Everything of a request happens there:
/// it takes no lock and shares nothing with other channels but atomics.
class ScsiChannel final : private ScsiCompletion {
 public:
  static constexpr uint8_t kMaxLuns = 64;

  /// What all channels of a controller share. Outlives them.
  struct Shared {
    std::string name;
    unsigned queue_depth = 0;
    StorvscSession::Limits limits;
    std::atomic<bool> session_ready{false};  ///< sub-channels serve requests while it is set
    ScsiCounters counters;
    // Called by the primary channel, on its loop.
    std::function<void()> on_session_ready;
    std::function<void(uint16_t)> on_sub_channels_wanted;
  };

  /// A unit, and what is in it.
  struct Lun {
    std::shared_ptr<ScsiUnit> unit;
    std::shared_ptr<DiskIo> medium;  ///< null: an empty drive
  };

  /// What is saved of a channel that is detached.
  struct State {
    StorvscSession::State session;  ///< of the primary
    bool announce_pending = false;  ///< of the primary: the guest does not yet know of a change
    bool failed = false;            ///< stopped by a protocol error
  };

  ScsiChannel(Shared& shared, uint16_t index, std::unique_ptr<Channel> channel, vmm::Loop& loop,
              const std::map<uint8_t, Lun>& luns);
  ~ScsiChannel() override;

  vmm::Loop& loop() { return loop_; }

  /// Serves the ring from now on; no-op if it does.
  vmm::Result<void> Attach();
  /// Finishes what is under way, replies included, and serves the ring no more; no-op if it does
  /// not.
  void Detach();
  /// Detach without replies, for the guest has closed the channel; gives up all queues. The caller
  /// destroys the channel on the main thread. Whatever comes after it does nothing.
  std::unique_ptr<Channel> Shutdown();

  State Save() const;
  vmm::Result<void> Restore(const State& state);

  void InsertUnit(uint8_t number, Lun lun);
  /// Drops `ticket` when no request and no queue of this channel uses the medium any more.
  void RemoveUnit(uint8_t number, std::shared_ptr<void> ticket);
  /// As RemoveUnit and InsertUnit, for the same unit.
  void ReplaceMedium(uint8_t number, std::shared_ptr<DiskIo> medium, std::shared_ptr<void> ticket);
  /// Primary channel: tells the guest to look for changed units, as soon as it can.
  void AnnounceLunChange();
  /// Looks at the ring.
  void Turn();

 private:
  struct LunSlot {
    std::shared_ptr<void> ticket;  ///< first, so that it goes last
    Lun lun;
    std::unique_ptr<DiskQueue> queue;  ///< of the medium, opened by the first request
    unsigned in_flight = 0;
    bool to_kick = false;
  };
  struct Request final : ScsiCommand {
    uint64_t transaction_id = 0;
    size_t reply_bytes = 0;
    storvsc::Srb srb{};
    LunSlot* slot = nullptr;
    size_t position = 0;  ///< in active_
  };
  struct SrbResult {
    uint8_t srb_status = storvsc::kSrbSuccess;
    scsi::Status scsi_status = scsi::Status::kGood;
    scsi::Sense sense;
    uint32_t bytes_moved = 0;
  };
  struct Tally {
    uint64_t requests = 0;
    uint64_t bytes_read = 0;
    uint64_t bytes_written = 0;
    uint64_t errors = 0;
  };

  // scsi_channel.cc: the ring.
  bool IsFull() const { return active_.size() >= shared_.queue_depth; }
  bool CanConsume();
  void HandlePacket();
  void HandleControl(const storvsc::Packet& packet, size_t reply_bytes);
  void Send(uint64_t transaction_id, const storvsc::Packet& packet, size_t bytes);
  void SendAnnouncement();
  void ProtocolError(std::string_view what);
  void ScheduleTurn();
  void KickQueues();
  void SweepRetired();
  void PublishTally();
  void DrainAll();

  // scsi_channel_srb.cc: requests.
  void HandleSrb(const storvsc::Packet& packet, size_t reply_bytes);
  bool CheckDataBuffer(const storvsc::Srb& srb);
  void Start(Request& request);
  bool OpenQueue(LunSlot& slot, uint8_t lun);
  SrbResult ReportLuns(Request& request);
  SrbResult AnswerForAbsent(Request& request);
  void OnScsiComplete(ScsiCommand& command) override;
  void Finish(Request& request, const SrbResult& result);
  Request& NewRequest();
  void ReleaseRequest(Request& request);

  static constexpr unsigned kPacketsPerTurn = 512;  ///< then other channels of the loop get theirs
  static constexpr size_t kIdleRequests = 32;       ///< kept for reuse

  // Configuration and collaborators.
  Shared& shared_;
  const uint16_t index_;
  std::unique_ptr<Channel> channel_;
  vmm::Loop& loop_;

  // State.
  StorvscSession session_;  ///< of the primary
  bool announce_pending_ = false;
  bool failed_ = false;

  // Book-keeping.
  bool attached_ = false;
  bool closed_ = false;
  bool in_turn_ = false;
  vmm::Loop::TimerId turn_timer_ = 0;
  IncomingPacket packet_;
  std::array<std::unique_ptr<LunSlot>, kMaxLuns> slots_;
  std::vector<std::unique_ptr<LunSlot>> retired_;  ///< removed, with requests still under way
  std::vector<LunSlot*> to_kick_;
  std::vector<std::unique_ptr<Request>> active_;
  std::vector<std::unique_ptr<Request>> idle_;
  Tally tally_;
};

}  // namespace kvmbus::virtdev
