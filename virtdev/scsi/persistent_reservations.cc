// SPDX-License-Identifier: Apache-2.0
#include "virtdev/scsi/persistent_reservations.h"

#include <algorithm>
#include <utility>

namespace kvmbus::virtdev {

using scsi::Sense;
using scsi::Status;

using Type = PersistentReservations::Type;
using Verdict = PersistentReservations::Verdict;

namespace {

constexpr Verdict kGood = {};
constexpr Verdict kConflict = {Status::kReservationConflict, {}};

Verdict Failed(const Sense& sense) { return {Status::kCheckCondition, sense}; }

bool IsAllRegistrants(Type type) {
  return type == Type::kWriteExclusiveAllRegistrants ||
         type == Type::kExclusiveAccessAllRegistrants;
}

/// Whoever is registered may do what the holder may.
bool ServesRegistrants(Type type) {
  return IsAllRegistrants(type) || type == Type::kWriteExclusiveRegistrantsOnly ||
         type == Type::kExclusiveAccessRegistrantsOnly;
}

bool ExcludesReads(Type type) {
  return type == Type::kExclusiveAccess || type == Type::kExclusiveAccessRegistrantsOnly ||
         type == Type::kExclusiveAccessAllRegistrants;
}

bool IsType(uint8_t type) { return type == 1 || type == 3 || (type >= 5 && type <= 8); }

}  // namespace

// --- the state

bool PersistentReservations::State::IsHolder(const Initiator& who) const {
  if (type == Type::kNone) return false;
  return IsAllRegistrants(type) ? keys.count(who) != 0 : holder == who;
}

bool PersistentReservations::State::IsQuiet() const {
  return type == Type::kNone && !reserver && attentions.empty();
}

void PersistentReservations::State::Tell(const Initiator& who, const Sense& attention) {
  std::vector<Sense>& waiting = attentions[who];
  if (std::find(waiting.begin(), waiting.end(), attention) == waiting.end())
    waiting.push_back(attention);
}

void PersistentReservations::State::TellRegistered(const Initiator& except,
                                                   const Sense& attention) {
  for (const auto& [who, key] : keys) {
    if (who != except) Tell(who, attention);
  }
}

void PersistentReservations::State::EndReservation() {
  type = Type::kNone;
  holder = {};
}

/// A reservation ends with its holder's registration, or with the last one if all hold it.
void PersistentReservations::State::Unregister(const Initiator& who) {
  const bool held = IsHolder(who);
  keys.erase(who);
  if (!held || (IsAllRegistrants(type) && !keys.empty())) return;
  if (ServesRegistrants(type)) TellRegistered(who, scsi::kReservationsReleased);
  EndReservation();
}

// --- PERSISTENT RESERVE OUT

Verdict PersistentReservations::Register(State& state, const Initiator& from,
                                         const OutRequest& request) {
  const auto own = state.keys.find(from);
  const bool registered = own != state.keys.end();
  if (static_cast<Out>(request.action) == Out::kRegister &&
      request.key != (registered ? own->second : 0))
    return kConflict;
  if (!registered && request.action_key == 0) return kGood;  // it has nothing to take back
  if (request.action_key == 0) {
    state.Unregister(from);
  } else {
    if (!registered && state.keys.size() >= kMaxRegistrations)
      return Failed(scsi::kInsufficientRegistrations);
    state.keys[from] = request.action_key;
  }
  state.persist = request.persist;
  ++state.generation;
  return kGood;
}

Verdict PersistentReservations::ReserveAs(State& state, const Initiator& from,
                                          const OutRequest& request) {
  const auto type = static_cast<Type>(request.type);
  if (state.type != Type::kNone)
    return state.IsHolder(from) && state.type == type ? kGood : kConflict;
  state.type = type;
  state.holder = IsAllRegistrants(type) ? Initiator{} : from;
  return kGood;
}

Verdict PersistentReservations::ReleaseAs(State& state, const Initiator& from,
                                          const OutRequest& request) {
  if (!state.IsHolder(from)) return kGood;
  if (state.type != static_cast<Type>(request.type)) return Failed(scsi::kInvalidRelease);
  if (ServesRegistrants(state.type)) state.TellRegistered(from, scsi::kReservationsReleased);
  state.EndReservation();
  return kGood;
}

Verdict PersistentReservations::Clear(State& state, const Initiator& from) {
  state.TellRegistered(from, scsi::kReservationsPreempted);
  state.EndReservation();
  state.keys.clear();
  ++state.generation;
  return kGood;
}

/// Takes registrations away, and the reservation too if they are its holder's.
Verdict PersistentReservations::Preempt(State& state, const Initiator& from,
                                        const OutRequest& request) {
  const bool all_hold = IsAllRegistrants(state.type);
  const bool everybody = request.action_key == 0;
  if (everybody && !all_hold) return Failed(scsi::kInvalidFieldInList);
  const bool takes_over =
      all_hold ? everybody
               : state.type != Type::kNone && state.keys.at(state.holder) == request.action_key;
  std::vector<Initiator> victims;
  for (const auto& [who, key] : state.keys) {
    if (everybody || key == request.action_key) victims.push_back(who);
  }
  if (victims.empty()) return kConflict;
  if (takes_over) std::erase(victims, from);  // it is to hold the reservation
  const Type before = state.type;
  if (takes_over) state.EndReservation();
  for (const Initiator& victim : victims) {
    state.Unregister(victim);
    if (victim != from) state.Tell(victim, scsi::kRegistrationsPreempted);
  }
  if (takes_over) {
    state.type = static_cast<Type>(request.type);
    state.holder = IsAllRegistrants(state.type) ? Initiator{} : from;
    if (state.type != before) state.TellRegistered(from, scsi::kReservationsReleased);
  }
  ++state.generation;
  return kGood;
}

/// What is wrong with a request before its service action is looked at.
Verdict PersistentReservations::CheckOut(const Initiator& from, const OutRequest& request) const {
  if (request.action > static_cast<uint8_t>(Out::kRegisterAndIgnore))
    return Failed(scsi::kInvalidFieldInCdb);
  const auto action = static_cast<Out>(request.action);
  const bool registers = action == Out::kRegister || action == Out::kRegisterAndIgnore;
  const bool names_type = action == Out::kReserve || action == Out::kRelease ||
                          action == Out::kPreempt || action == Out::kPreemptAndAbort;
  if (names_type && (request.scope != 0 || !IsType(request.type)))
    return Failed(scsi::kInvalidFieldInCdb);
  if (request.specify_initiators || (registers && request.all_target_ports) ||
      (registers && request.persist && !store_))
    return Failed(scsi::kInvalidFieldInList);
  if (state_.reserver) return kConflict;
  if (registers) return kGood;
  const auto own = state_.keys.find(from);
  return own == state_.keys.end() || own->second != request.key ? kConflict : kGood;
}

Verdict PersistentReservations::HandleOut(const Initiator& from, const OutRequest& request) {
  std::lock_guard lock(mutex_);
  Verdict verdict = CheckOut(from, request);
  if (!verdict.good()) return verdict;
  State next = state_;
  switch (static_cast<Out>(request.action)) {
    case Out::kRegister:
    case Out::kRegisterAndIgnore:
      verdict = Register(next, from, request);
      break;
    case Out::kReserve:
      verdict = ReserveAs(next, from, request);
      break;
    case Out::kRelease:
      verdict = ReleaseAs(next, from, request);
      break;
    case Out::kClear:
      verdict = Clear(next, from);
      break;
    case Out::kPreempt:
    case Out::kPreemptAndAbort:
      verdict = Preempt(next, from, request);
      break;
  }
  if (!verdict.good()) return verdict;
  const State before = state_;
  if (!Commit(std::move(next))) return Failed(scsi::kInternalTargetFailure);
  if (static_cast<Out>(request.action) == Out::kPreemptAndAbort)
    AbortCommandsOfRemoved(before, from);
  return kGood;
}

bool PersistentReservations::Commit(State next) {
  if (!Keep(next)) return false;
  state_ = std::move(next);
  quiet_.store(state_.IsQuiet(), std::memory_order_release);
  return true;
}

// --- SPC-2's RESERVE and RELEASE, and how they live with the others (CRH)

Verdict PersistentReservations::Reserve(const Initiator& from) {
  std::lock_guard lock(mutex_);
  const bool registered = state_.keys.count(from) != 0;
  if (state_.IsHolder(from) || (registered && ServesRegistrants(state_.type))) return kGood;
  if (!state_.keys.empty() || (state_.reserver && *state_.reserver != from)) return kConflict;
  State next = state_;
  next.reserver = from;
  (void)Commit(std::move(next));  // nothing of it is persistent
  return kGood;
}

Verdict PersistentReservations::Release(const Initiator& from) {
  std::lock_guard lock(mutex_);
  const bool registered = state_.keys.count(from) != 0;
  if (state_.IsHolder(from) || (registered && ServesRegistrants(state_.type))) return kGood;
  if (!state_.keys.empty()) return kConflict;
  if (state_.reserver != from) return kGood;
  State next = state_;
  next.reserver.reset();
  (void)Commit(std::move(next));
  return kGood;
}

// --- other commands

bool PersistentReservations::Conflicts(const Initiator& from, Access access) const {
  if (access == Access::kNone || IsQuiet()) return false;
  std::lock_guard lock(mutex_);
  if (state_.reserver) return *state_.reserver != from;
  if (access == Access::kStatus || state_.type == Type::kNone || state_.IsHolder(from))
    return false;
  if (ServesRegistrants(state_.type) && state_.keys.count(from) != 0) return false;
  return access == Access::kWrite || ExcludesReads(state_.type);
}

std::optional<Sense> PersistentReservations::TakeAttention(const Initiator& from) {
  if (IsQuiet()) return std::nullopt;
  std::lock_guard lock(mutex_);
  const auto at = state_.attentions.find(from);
  if (at == state_.attentions.end()) return std::nullopt;
  const Sense attention = at->second.front();
  at->second.erase(at->second.begin());
  if (at->second.empty()) state_.attentions.erase(at);
  quiet_.store(state_.IsQuiet(), std::memory_order_release);
  return attention;
}

void PersistentReservations::ResetInitiator(const Initiator& who) {
  std::lock_guard lock(mutex_);
  State next = state_;
  if (next.reserver == who) next.reserver.reset();
  next.attentions.erase(who);
  (void)Commit(std::move(next));  // nothing of it is persistent
}

// --- commands under way

uint64_t PersistentReservations::BeginCommand(const Initiator& from) {
  std::lock_guard lock(mutex_);
  Nexus& nexus = nexuses_[from];
  ++nexus.under_way;
  return nexus.epoch;
}

bool PersistentReservations::EndCommand(const Initiator& from, uint64_t epoch) {
  std::lock_guard lock(mutex_);
  Nexus& nexus = nexuses_[from];
  if (nexus.epoch == epoch) {
    KVMBUS_ASSERT(nexus.under_way != 0);
    --nexus.under_way;
    return true;
  }
  KVMBUS_ASSERT(aborted_under_way_ != 0);
  --aborted_under_way_;
  return false;
}

bool PersistentReservations::IsAborted(const Initiator& from, uint64_t epoch) const {
  std::lock_guard lock(mutex_);
  return nexuses_.at(from).epoch != epoch;
}

bool PersistentReservations::AbortsAreDone() const {
  std::lock_guard lock(mutex_);
  return aborted_under_way_ == 0;
}

void PersistentReservations::AbortCommandsOfRemoved(const State& before, const Initiator& from) {
  for (const auto& [who, key] : before.keys) {
    if (who == from || state_.keys.count(who) != 0) continue;
    Nexus& nexus = nexuses_[who];
    ++nexus.epoch;
    aborted_under_way_ += std::exchange(nexus.under_way, 0);
  }
}

}  // namespace kvmbus::virtdev
