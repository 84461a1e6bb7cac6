// SPDX-License-Identifier: Apache-2.0
/// \file
/// PersistentReservations: who may use a disk (SPC-4's PERSISTENT RESERVE, SPC-2's RESERVE).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "virtdev/scsi/scsi_protocol.h"
#include "vmm/guid/guid.h"
#include "vmm/result/result.h"

namespace kvmbus::state {
class ScsiReservations;
}

namespace kvmbus::virtdev {

/// The reservations of one disk, for all its initiators: virtual machines, each by an id that stays
/// the same over its restarts and moves. Any thread; while nobody reserves anything, a command
/// costs one atomic load.
class PersistentReservations {
 public:
  using Initiator = vmm::Guid;
  static constexpr size_t kMaxRegistrations = 256;

  enum class Type : uint8_t {
    kNone = 0,
    kWriteExclusive = 1,
    kExclusiveAccess = 3,
    kWriteExclusiveRegistrantsOnly = 5,
    kExclusiveAccessRegistrantsOnly = 6,
    kWriteExclusiveAllRegistrants = 7,
    kExclusiveAccessAllRegistrants = 8,
  };

  /// What a command does, as far as reservations care.
  enum class Access {
    kNone,    ///< allowed whoever reserved: INQUIRY and its like
    kStatus,  ///< held up by SPC-2's RESERVE alone: TEST UNIT READY, READ CAPACITY
    kRead,
    kWrite,  ///< also what changes the disk's ways: MODE SELECT, START STOP UNIT
  };

  enum class In : uint8_t { kKeys = 0, kReservation = 1, kCapabilities = 2, kFullStatus = 3 };
  enum class Out : uint8_t {
    kRegister = 0,
    kReserve = 1,
    kRelease = 2,
    kClear = 3,
    kPreempt = 4,
    kPreemptAndAbort = 5,
    kRegisterAndIgnore = 6,
  };

  struct OutRequest {
    uint8_t action = 0;
    uint8_t scope = 0;
    uint8_t type = 0;
    uint64_t key = 0;         ///< RESERVATION KEY
    uint64_t action_key = 0;  ///< SERVICE ACTION RESERVATION KEY
    bool specify_initiators = false;
    bool all_target_ports = false;
    bool persist = false;  ///< APTPL
  };
  struct Verdict {
    scsi::Status status = scsi::Status::kGood;
    scsi::Sense sense;
    bool good() const { return status == scsi::Status::kGood; }
    bool operator==(const Verdict&) const = default;
  };

  /// Keeps what outlives a loss of power (APTPL), "" for nothing, before the guest hears of
  /// success. Called under this object's lock, on whatever thread. False: it could not.
  using Store = std::function<bool(const std::string& state)>;

  /// Without a store initiators cannot ask for APTPL.
  explicit PersistentReservations(Store store = {}) : store_(std::move(store)) {}

  /// PERSISTENT RESERVE OUT.
  Verdict HandleOut(const Initiator& from, const OutRequest& request);
  /// PERSISTENT RESERVE IN: the whole answer, to be cut at the allocation length.
  Verdict HandleIn(uint8_t action, std::vector<uint8_t>* answer) const;
  /// RESERVE and RELEASE of 6 and 10 bytes.
  Verdict Reserve(const Initiator& from);
  Verdict Release(const Initiator& from);

  /// Nobody reserves anything and nobody has to be told: neither of the next two finds anything.
  bool IsQuiet() const { return quiet_.load(std::memory_order_acquire); }
  /// True: the command ends with RESERVATION CONFLICT.
  bool Conflicts(const Initiator& from, Access access) const;
  /// The unit attention that this initiator has not heard yet, once.
  std::optional<scsi::Sense> TakeAttention(const Initiator& from);

  /// Of disks that have several initiators: a command other than PERSISTENT RESERVE begins. Returns
  /// its epoch; EndCommand is false if PREEMPT AND ABORT came meanwhile.
  uint64_t BeginCommand(const Initiator& from);
  bool EndCommand(const Initiator& from, uint64_t epoch);
  /// What EndCommand will say, for those that take long.
  bool IsAborted(const Initiator& from, uint64_t epoch) const;
  /// No command that was aborted is still under way.
  bool AbortsAreDone() const;

  /// The initiator was reset: what it had not heard yet, and its RESERVE.
  void ResetInitiator(const Initiator& who);
  /// The disk lost its power: what was not made persistent is gone.
  void PowerCycle();

  /// All of it: a disk that is saved with its virtual machine.
  void Save(state::ScsiReservations* saved) const;
  /// Error kDataLoss, and nothing changed: a state that no initiators could have brought about.
  vmm::Result<void> Restore(const state::ScsiReservations& saved);
  /// Whether Restore would take it, but for a store that fails.
  vmm::Result<void> Check(const state::ScsiReservations& saved) const;
  /// As Store was given it: the disk has power again.
  vmm::Result<void> RestorePersistent(const std::string& stored);

 private:
  struct State {
    uint32_t generation = 0;
    bool persist = false;
    std::map<Initiator, uint64_t> keys;  ///< the registrations
    Type type = Type::kNone;
    Initiator holder;                   ///< unless all registrants hold it
    std::optional<Initiator> reserver;  ///< by SPC-2's RESERVE
    std::map<Initiator, std::vector<scsi::Sense>> attentions;

    bool IsHolder(const Initiator& who) const;
    bool IsQuiet() const;
    void Tell(const Initiator& who, const scsi::Sense& attention);
    void TellRegistered(const Initiator& except, const scsi::Sense& attention);
    void EndReservation();
    void Unregister(const Initiator& who);
  };
  struct Nexus {
    uint64_t epoch = 0;
    uint64_t under_way = 0;  ///< commands of this epoch
  };

  static vmm::Result<State> Parse(const state::ScsiReservations& saved);
  vmm::Result<State> ParseForThis(const state::ScsiReservations& saved) const;
  static void Write(const State& state, state::ScsiReservations* saved);

  static Verdict Register(State& state, const Initiator& from, const OutRequest& request);
  static Verdict ReserveAs(State& state, const Initiator& from, const OutRequest& request);
  static Verdict ReleaseAs(State& state, const Initiator& from, const OutRequest& request);
  static Verdict Clear(State& state, const Initiator& from);
  static Verdict Preempt(State& state, const Initiator& from, const OutRequest& request);
  Verdict CheckOut(const Initiator& from, const OutRequest& request) const;
  bool Commit(State next);
  bool Keep(const State& next);
  void AbortCommandsOfRemoved(const State& before, const Initiator& from);
  void FillFullStatus(std::vector<uint8_t>* answer) const;

  const Store store_;
  std::atomic<bool> quiet_{true};
  mutable std::mutex mutex_;  // guards all below
  State state_;
  std::map<Initiator, Nexus> nexuses_;
  uint64_t aborted_under_way_ = 0;
};

}  // namespace kvmbus::virtdev
