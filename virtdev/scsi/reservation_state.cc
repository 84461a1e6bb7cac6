// SPDX-License-Identifier: Apache-2.0
// What reservations tell (PERSISTENT RESERVE IN) and what is kept of them.
#include <algorithm>

#include "state/scsi.pb.h"
#include "virtdev/scsi/persistent_reservations.h"

namespace kvmbus::virtdev {

using scsi::Sense;
using vmm::Code;

namespace {

constexpr size_t kHeaderBytes = 8;  ///< generation, additional length
constexpr size_t kTransportIdBytes = 24;

bool IsAllRegistrants(PersistentReservations::Type type) {
  return type == PersistentReservations::Type::kWriteExclusiveAllRegistrants ||
         type == PersistentReservations::Type::kExclusiveAccessAllRegistrants;
}

void PutHeader(std::vector<uint8_t>& answer, uint32_t generation) {
  scsi::PutBe<uint32_t>(answer, 0, generation);
  scsi::PutBe<uint32_t>(answer, 4, static_cast<uint32_t>(answer.size() - kHeaderBytes));
}

/// An initiator's name in SAS's form: 60 bits of its id under "locally assigned".
void PutTransportId(std::span<uint8_t> to, const vmm::Guid& initiator) {
  constexpr uint8_t kSas = 0x06;
  constexpr uint8_t kLocallyAssigned = 0x30;
  to[0] = kSas;
  std::copy_n(initiator.bytes.begin(), 8, to.begin() + 4);
  to[4] = static_cast<uint8_t>(kLocallyAssigned | (to[4] & 0x0f));
}

std::vector<uint8_t> Capabilities(bool persistent, bool active) {
  constexpr uint8_t kCompatibleHandling = 0x10;  // CRH
  constexpr uint8_t kPersistCapable = 0x01;      // PTPL_C
  constexpr uint8_t kTypeMaskValid = 0x80;
  constexpr uint8_t kAllowsTestUnitReady = 0x10;
  constexpr uint8_t kPersistActive = 0x01;
  std::vector<uint8_t> answer(8);
  scsi::PutBe<uint16_t>(answer, 0, 8);
  answer[2] = static_cast<uint8_t>(kCompatibleHandling | (persistent ? kPersistCapable : 0));
  answer[3] =
      static_cast<uint8_t>(kTypeMaskValid | kAllowsTestUnitReady | (active ? kPersistActive : 0));
  answer[4] = 0xea;  // types 7, 6, 5, 3, 1
  answer[5] = 0x01;  // type 8
  return answer;
}

bool IsAttention(const Sense& sense) {
  return sense == scsi::kReservationsPreempted || sense == scsi::kReservationsReleased ||
         sense == scsi::kRegistrationsPreempted;
}

vmm::Error Invalid(std::string_view what) {
  return vmm::MakeError(Code::kDataLoss, "saved reservations are not valid: {}", what);
}

}  // namespace

PersistentReservations::Verdict PersistentReservations::HandleIn(
    uint8_t action, std::vector<uint8_t>* answer) const {
  std::lock_guard lock(mutex_);
  if (action > static_cast<uint8_t>(In::kFullStatus))
    return {scsi::Status::kCheckCondition, scsi::kInvalidFieldInCdb};
  if (state_.reserver) return {scsi::Status::kReservationConflict, {}};
  switch (static_cast<In>(action)) {
    case In::kKeys: {
      answer->resize(kHeaderBytes + 8 * state_.keys.size());
      size_t at = kHeaderBytes;
      for (const auto& [who, key] : state_.keys) {
        scsi::PutBe<uint64_t>(*answer, at, key);
        at += 8;
      }
      break;
    }
    case In::kReservation:
      answer->resize(kHeaderBytes + (state_.type == Type::kNone ? 0 : 16));
      if (state_.type == Type::kNone) break;
      if (!IsAllRegistrants(state_.type))
        scsi::PutBe<uint64_t>(*answer, kHeaderBytes, state_.keys.at(state_.holder));
      (*answer)[kHeaderBytes + 13] = static_cast<uint8_t>(state_.type);
      break;
    case In::kCapabilities:
      *answer = Capabilities(store_ != nullptr, state_.persist);
      return {};
    case In::kFullStatus:
      FillFullStatus(answer);
      break;
  }
  PutHeader(*answer, state_.generation);
  return {};
}

void PersistentReservations::FillFullStatus(std::vector<uint8_t>* answer) const {
  constexpr size_t kDescriptorBytes = 24 + kTransportIdBytes;
  constexpr uint8_t kHolder = 0x01;
  constexpr uint16_t kTargetPort = 1;
  answer->resize(kHeaderBytes + kDescriptorBytes * state_.keys.size());
  size_t at = kHeaderBytes;
  for (const auto& [who, key] : state_.keys) {
    const std::span<uint8_t> descriptor = std::span(*answer).subspan(at, kDescriptorBytes);
    scsi::PutBe<uint64_t>(descriptor, 0, key);
    if (state_.IsHolder(who)) {
      descriptor[12] = kHolder;
      descriptor[13] = static_cast<uint8_t>(state_.type);
    }
    scsi::PutBe<uint16_t>(descriptor, 18, kTargetPort);
    scsi::PutBe<uint32_t>(descriptor, 20, kTransportIdBytes);
    PutTransportId(descriptor.subspan(24), who);
    at += kDescriptorBytes;
  }
}

// --- what is kept

bool PersistentReservations::Keep(const State& next) {
  if (!store_ || (!state_.persist && !next.persist)) return true;
  if (!next.persist) return store_("");
  // Who is to be told of what is not part of it, nor is RESERVE, nor the generation.
  const bool same = state_.persist && state_.keys == next.keys && state_.type == next.type &&
                    state_.holder == next.holder;
  if (same) return true;
  State kept;
  kept.persist = true;
  kept.keys = next.keys;
  kept.type = next.type;
  kept.holder = next.holder;
  state::ScsiReservations message;
  Write(kept, &message);
  return store_(message.SerializeAsString());
}

void PersistentReservations::PowerCycle() {
  std::lock_guard lock(mutex_);
  State next;
  if (state_.persist) {
    next.persist = true;
    next.keys = state_.keys;
    next.type = state_.type;
    next.holder = state_.holder;
  }
  (void)Commit(std::move(next));  // changes nothing that is persistent
}

void PersistentReservations::Write(const State& state, state::ScsiReservations* saved) {
  saved->Clear();
  saved->set_generation(state.generation);
  saved->set_persist(state.persist);
  for (const auto& [who, key] : state.keys) {
    state::ScsiRegistration* entry = saved->add_registrations();
    entry->set_initiator(who.ToBytes());
    entry->set_key(key);
  }
  saved->set_type(static_cast<uint32_t>(state.type));
  if (state.type != Type::kNone && !IsAllRegistrants(state.type))
    saved->set_holder(state.holder.ToBytes());
  if (state.reserver) saved->set_reserver(state.reserver->ToBytes());
  for (const auto& [who, waiting] : state.attentions) {
    for (const Sense& sense : waiting) {
      state::ScsiAttention* entry = saved->add_attentions();
      entry->set_initiator(who.ToBytes());
      entry->set_asc(sense.asc);
      entry->set_ascq(sense.ascq);
    }
  }
}

vmm::Result<PersistentReservations::State> PersistentReservations::Parse(
    const state::ScsiReservations& saved) {
  State state;
  state.generation = saved.generation();
  state.persist = saved.persist();
  if (static_cast<size_t>(saved.registrations_size()) > kMaxRegistrations)
    return Invalid("too many registrations");
  for (const state::ScsiRegistration& entry : saved.registrations()) {
    const auto who = vmm::Guid::FromBytes(entry.initiator());
    if (!who || entry.key() == 0 || !state.keys.emplace(*who, entry.key()).second)
      return Invalid("a registration without an initiator of its own and a key");
  }
  const uint32_t type = saved.type();
  if (type > 8 || type == 2 || type == 4) return Invalid("no such type of reservation");
  state.type = static_cast<Type>(type);
  if (state.type != Type::kNone && state.keys.empty())
    return Invalid("a reservation that nobody holds");
  if (state.type != Type::kNone && !IsAllRegistrants(state.type)) {
    const auto holder = vmm::Guid::FromBytes(saved.holder());
    if (!holder || state.keys.count(*holder) == 0)
      return Invalid("a reservation whose holder is not registered");
    state.holder = *holder;
  } else if (!saved.holder().empty()) {
    return Invalid("a holder without a reservation");
  }
  if (!saved.reserver().empty()) {
    state.reserver = vmm::Guid::FromBytes(saved.reserver());
    if (!state.reserver || !state.keys.empty()) return Invalid("RESERVE beside registrations");
  }
  // Three kinds of attention for as many initiators as could have been registered.
  if (static_cast<size_t>(saved.attentions_size()) > 3 * kMaxRegistrations)
    return Invalid("too many unit attentions");
  for (const state::ScsiAttention& entry : saved.attentions()) {
    const auto who = vmm::Guid::FromBytes(entry.initiator());
    const Sense sense = {scsi::SenseKey::kUnitAttention, static_cast<uint8_t>(entry.asc()),
                         static_cast<uint8_t>(entry.ascq())};
    if (!who || entry.asc() > 0xff || entry.ascq() > 0xff || !IsAttention(sense))
      return Invalid("no such unit attention");
    state.Tell(*who, sense);
  }
  return state;
}

void PersistentReservations::Save(state::ScsiReservations* saved) const {
  std::lock_guard lock(mutex_);
  Write(state_, saved);
}

vmm::Result<PersistentReservations::State> PersistentReservations::ParseForThis(
    const state::ScsiReservations& saved) const {
  State state = TRY(Parse(saved));
  if (state.persist && !store_)
    return Invalid("persistent ones, on a disk that has no place for them");
  return state;
}

vmm::Result<void> PersistentReservations::Check(const state::ScsiReservations& saved) const {
  (void)TRY(ParseForThis(saved));
  return {};
}

vmm::Result<void> PersistentReservations::Restore(const state::ScsiReservations& saved) {
  State next = TRY(ParseForThis(saved));
  std::lock_guard lock(mutex_);
  if (!Commit(std::move(next)))
    return vmm::Error(Code::kUnavailable, "persistent reservations cannot be stored");
  return {};
}

vmm::Result<void> PersistentReservations::RestorePersistent(const std::string& stored) {
  state::ScsiReservations saved;
  if (!saved.ParseFromString(stored)) return Invalid("they cannot be parsed");
  State next = TRY(Parse(saved));
  if (!next.persist || next.reserver || !next.attentions.empty())
    return Invalid("not what a disk keeps without power");
  std::lock_guard lock(mutex_);
  state_ = std::move(next);
  quiet_.store(state_.IsQuiet(), std::memory_order_release);
  return {};
}

}  // namespace kvmbus::virtdev
