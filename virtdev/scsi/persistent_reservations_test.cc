// SPDX-License-Identifier: Apache-2.0
// The rules of reservations, one by one, and generated sequences against a small model of them.
#include "virtdev/scsi/persistent_reservations.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "state/scsi.pb.h"

namespace kvmbus::virtdev {
namespace {

using Access = PersistentReservations::Access;
using Out = PersistentReservations::Out;
using OutRequest = PersistentReservations::OutRequest;
using Type = PersistentReservations::Type;
using Verdict = PersistentReservations::Verdict;
using scsi::Sense;

constexpr Verdict kGood = {};
constexpr Verdict kConflict = {scsi::Status::kReservationConflict, {}};
Verdict Failed(const Sense& sense) { return {scsi::Status::kCheckCondition, sense}; }

vmm::Guid Id(uint8_t number) {
  vmm::Guid guid;
  guid.bytes.fill(number);
  return guid;
}

const vmm::Guid kA = Id(0x1a), kB = Id(0x1b), kC = Id(0x1c);
constexpr uint64_t kKeyA = 0xa1, kKeyB = 0xb1, kKeyC = 0xc1;

OutRequest Make(Out action, uint64_t key, uint64_t action_key = 0, Type type = Type::kNone) {
  OutRequest request;
  request.action = static_cast<uint8_t>(action);
  request.type = static_cast<uint8_t>(type);
  request.key = key;
  request.action_key = action_key;
  return request;
}

class Reservations : public ::testing::Test {
 protected:
  Verdict Register(const vmm::Guid& who, uint64_t key) {
    return rules_.HandleOut(who, Make(Out::kRegisterAndIgnore, 0, key));
  }
  void RegisterAll() {
    ASSERT_EQ(Register(kA, kKeyA), kGood);
    ASSERT_EQ(Register(kB, kKeyB), kGood);
    ASSERT_EQ(Register(kC, kKeyC), kGood);
  }
  Verdict Reserve(const vmm::Guid& who, uint64_t key, Type type) {
    return rules_.HandleOut(who, Make(Out::kReserve, key, 0, type));
  }
  std::vector<uint8_t> Read(PersistentReservations::In what) {
    std::vector<uint8_t> answer;
    EXPECT_EQ(rules_.HandleIn(static_cast<uint8_t>(what), &answer), kGood);
    return answer;
  }
  uint32_t Generation() {
    return scsi::GetBe<uint32_t>(Read(PersistentReservations::In::kKeys), 0);
  }
  std::set<uint64_t> Keys() {
    const auto answer = Read(PersistentReservations::In::kKeys);
    std::set<uint64_t> keys;
    for (size_t at = 8; at < answer.size(); at += 8) keys.insert(scsi::GetBe<uint64_t>(answer, at));
    return keys;
  }
  Type Reserved() {
    const auto answer = Read(PersistentReservations::In::kReservation);
    return answer.size() == 8 ? Type::kNone : static_cast<Type>(answer[21]);
  }
  std::vector<Sense> Attentions(const vmm::Guid& who) {
    std::vector<Sense> all;
    while (const auto sense = rules_.TakeAttention(who)) all.push_back(*sense);
    return all;
  }

  PersistentReservations rules_;
};

TEST_F(Reservations, RegisteringNeedsTheOldKey) {
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kRegister, 7, kKeyA)), kConflict);
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kRegister, 0, 0)), kGood);
  EXPECT_EQ(Generation(), 0u) << "nothing to take back";
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kRegister, 0, kKeyA)), kGood);
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kRegister, 0, 5)), kConflict);
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kRegister, kKeyA, 5)), kGood);
  EXPECT_EQ(Keys(), (std::set<uint64_t>{5}));
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kRegisterAndIgnore, 99, kKeyA)), kGood);
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kRegister, kKeyA, 0)), kGood);
  EXPECT_EQ(Keys(), (std::set<uint64_t>{}));
  EXPECT_EQ(Generation(), 4u);
}

TEST_F(Reservations, OnlyTheRegisteredMayDoMore) {
  for (const Out action :
       {Out::kReserve, Out::kRelease, Out::kClear, Out::kPreempt, Out::kPreemptAndAbort}) {
    const OutRequest request = Make(action, kKeyA, kKeyA, Type::kWriteExclusive);
    EXPECT_EQ(rules_.HandleOut(kA, request), kConflict) << static_cast<int>(action);
  }
  RegisterAll();
  EXPECT_EQ(Reserve(kA, kKeyB, Type::kWriteExclusive), kConflict) << "another's key";
  EXPECT_EQ(Generation(), 3u);
}

TEST_F(Reservations, RefusesWhatItDoesNotHave) {
  RegisterAll();
  for (const uint8_t type : {0, 2, 4, 9, 15}) {
    OutRequest request = Make(Out::kReserve, kKeyA);
    request.type = type;
    EXPECT_EQ(rules_.HandleOut(kA, request), Failed(scsi::kInvalidFieldInCdb)) << int{type};
  }
  OutRequest request = Make(Out::kReserve, kKeyA, 0, Type::kWriteExclusive);
  request.scope = 1;
  EXPECT_EQ(rules_.HandleOut(kA, request), Failed(scsi::kInvalidFieldInCdb));
  request = Make(Out::kClear, kKeyA);
  request.action = 7;  // REGISTER AND MOVE
  EXPECT_EQ(rules_.HandleOut(kA, request), Failed(scsi::kInvalidFieldInCdb));
  request = Make(Out::kRegister, kKeyA, kKeyA);
  request.specify_initiators = true;
  EXPECT_EQ(rules_.HandleOut(kA, request), Failed(scsi::kInvalidFieldInList));
  request.specify_initiators = false;
  request.all_target_ports = true;
  EXPECT_EQ(rules_.HandleOut(kA, request), Failed(scsi::kInvalidFieldInList));
  request.all_target_ports = false;
  request.persist = true;
  EXPECT_EQ(rules_.HandleOut(kA, request), Failed(scsi::kInvalidFieldInList)) << "no store";
  std::vector<uint8_t> answer;
  EXPECT_EQ(rules_.HandleIn(4, &answer), Failed(scsi::kInvalidFieldInCdb));
}

TEST_F(Reservations, RegistrationsAreBounded) {
  for (size_t i = 0; i < PersistentReservations::kMaxRegistrations; ++i) {
    vmm::Guid who;
    scsi::PutBe<uint32_t>(who.bytes, 0, static_cast<uint32_t>(i + 1));
    ASSERT_EQ(Register(who, i + 1), kGood);
  }
  EXPECT_EQ(Register(kA, kKeyA), Failed(scsi::kInsufficientRegistrations));
}

TEST_F(Reservations, ReserveAndRelease) {
  RegisterAll();
  EXPECT_EQ(Reserve(kA, kKeyA, Type::kWriteExclusive), kGood);
  EXPECT_EQ(Reserve(kA, kKeyA, Type::kWriteExclusive), kGood) << "a second time is the same";
  EXPECT_EQ(Reserve(kA, kKeyA, Type::kExclusiveAccess), kConflict);
  EXPECT_EQ(Reserve(kB, kKeyB, Type::kWriteExclusive), kConflict);
  const auto release = Make(Out::kRelease, kKeyB, 0, Type::kWriteExclusive);
  EXPECT_EQ(rules_.HandleOut(kB, release), kGood) << "not its own: nothing happens";
  EXPECT_EQ(Reserved(), Type::kWriteExclusive);
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kRelease, kKeyA, 0, Type::kExclusiveAccess)),
            Failed(scsi::kInvalidRelease));
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kRelease, kKeyA, 0, Type::kWriteExclusive)), kGood);
  EXPECT_EQ(Reserved(), Type::kNone);
  EXPECT_EQ(Generation(), 3u) << "neither counts";
  EXPECT_TRUE(Attentions(kB).empty()) << "only registrants' reservations are announced";
  EXPECT_TRUE(rules_.IsQuiet());

  EXPECT_EQ(Reserve(kA, kKeyA, Type::kWriteExclusiveRegistrantsOnly), kGood);
  EXPECT_EQ(
      rules_.HandleOut(kA, Make(Out::kRelease, kKeyA, 0, Type::kWriteExclusiveRegistrantsOnly)),
      kGood);
  EXPECT_EQ(Attentions(kA), (std::vector<Sense>{}));
  EXPECT_EQ(Attentions(kB), (std::vector<Sense>{scsi::kReservationsReleased}));
  EXPECT_EQ(Attentions(kC), (std::vector<Sense>{scsi::kReservationsReleased}));
}

TEST_F(Reservations, AReservationEndsWithItsHolder) {
  RegisterAll();
  EXPECT_EQ(Reserve(kA, kKeyA, Type::kExclusiveAccessRegistrantsOnly), kGood);
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kRegister, kKeyA, 0)), kGood);
  EXPECT_EQ(Reserved(), Type::kNone);
  EXPECT_EQ(Attentions(kB), (std::vector<Sense>{scsi::kReservationsReleased}));

  EXPECT_EQ(Register(kA, kKeyA), kGood);
  EXPECT_EQ(Reserve(kB, kKeyB, Type::kWriteExclusiveAllRegistrants), kGood);
  EXPECT_EQ(rules_.HandleOut(kB, Make(Out::kRegister, kKeyB, 0)), kGood);
  EXPECT_EQ(Reserved(), Type::kWriteExclusiveAllRegistrants) << "the others hold it";
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kRegister, kKeyA, 0)), kGood);
  EXPECT_EQ(rules_.HandleOut(kC, Make(Out::kRegister, kKeyC, 0)), kGood);
  EXPECT_EQ(Reserved(), Type::kNone);
}

TEST_F(Reservations, Clear) {
  RegisterAll();
  EXPECT_EQ(Reserve(kA, kKeyA, Type::kExclusiveAccess), kGood);
  EXPECT_EQ(rules_.HandleOut(kB, Make(Out::kClear, kKeyB)), kGood);
  EXPECT_EQ(Reserved(), Type::kNone);
  EXPECT_TRUE(Keys().empty());
  EXPECT_EQ(Generation(), 4u);
  EXPECT_EQ(Attentions(kA), (std::vector<Sense>{scsi::kReservationsPreempted}));
  EXPECT_EQ(Attentions(kB), (std::vector<Sense>{}));
}

TEST_F(Reservations, PreemptTakesRegistrationsAway) {
  RegisterAll();
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kPreempt, kKeyA, 0x77, Type::kWriteExclusive)),
            kConflict)
      << "nobody has that key";
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kPreempt, kKeyA, 0, Type::kWriteExclusive)),
            Failed(scsi::kInvalidFieldInList));
  EXPECT_EQ(Reserve(kC, kKeyC, Type::kWriteExclusiveRegistrantsOnly), kGood);
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kPreempt, kKeyA, kKeyB, Type::kExclusiveAccess)), kGood);
  EXPECT_EQ(Keys(), (std::set<uint64_t>{kKeyA, kKeyC}));
  EXPECT_EQ(Reserved(), Type::kWriteExclusiveRegistrantsOnly) << "C's is left alone";
  EXPECT_EQ(Attentions(kB), (std::vector<Sense>{scsi::kRegistrationsPreempted}));
  EXPECT_EQ(Generation(), 4u);
}

TEST_F(Reservations, PreemptTakesTheReservationOver) {
  RegisterAll();
  EXPECT_EQ(Reserve(kB, kKeyB, Type::kWriteExclusiveRegistrantsOnly), kGood);
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kPreempt, kKeyA, kKeyB, Type::kExclusiveAccess)), kGood);
  EXPECT_EQ(Reserved(), Type::kExclusiveAccess);
  EXPECT_EQ(Attentions(kB), (std::vector<Sense>{scsi::kRegistrationsPreempted}));
  EXPECT_EQ(Attentions(kC), (std::vector<Sense>{scsi::kReservationsReleased})) << "another type";
  EXPECT_FALSE(rules_.Conflicts(kA, Access::kWrite));
  EXPECT_TRUE(rules_.Conflicts(kB, Access::kRead));
  // Its own reservation, for the sake of another type: it stays registered.
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kPreempt, kKeyA, kKeyA, Type::kWriteExclusive)), kGood);
  EXPECT_EQ(Reserved(), Type::kWriteExclusive);
  EXPECT_EQ(Keys(), (std::set<uint64_t>{kKeyA, kKeyC}));
}

TEST_F(Reservations, PreemptOfAllRegistrants) {
  RegisterAll();
  EXPECT_EQ(Reserve(kB, kKeyB, Type::kExclusiveAccessAllRegistrants), kGood);
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kPreempt, kKeyA, kKeyC, Type::kWriteExclusive)), kGood);
  EXPECT_EQ(Keys(), (std::set<uint64_t>{kKeyA, kKeyB}));
  EXPECT_EQ(Reserved(), Type::kExclusiveAccessAllRegistrants);
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kPreempt, kKeyA, 0, Type::kWriteExclusive)), kGood);
  EXPECT_EQ(Keys(), (std::set<uint64_t>{kKeyA}));
  EXPECT_EQ(Reserved(), Type::kWriteExclusive);
  EXPECT_EQ(Attentions(kB), (std::vector<Sense>{scsi::kRegistrationsPreempted}));
  EXPECT_EQ(Attentions(kC), (std::vector<Sense>{scsi::kRegistrationsPreempted}));
}

TEST_F(Reservations, ConflictsByTypeAndAccess) {
  struct Row {
    Type type;
    bool read_registered, write_registered, read_other, write_other;
  };
  const Row kRows[] = {
      {Type::kWriteExclusive, false, true, false, true},
      {Type::kExclusiveAccess, true, true, true, true},
      {Type::kWriteExclusiveRegistrantsOnly, false, false, false, true},
      {Type::kExclusiveAccessRegistrantsOnly, false, false, true, true},
      {Type::kWriteExclusiveAllRegistrants, false, false, false, true},
      {Type::kExclusiveAccessAllRegistrants, false, false, true, true},
  };
  ASSERT_EQ(Register(kA, kKeyA), kGood);
  ASSERT_EQ(Register(kB, kKeyB), kGood);
  for (const Row& row : kRows) {
    ASSERT_EQ(Reserve(kA, kKeyA, row.type), kGood);
    const auto name = testing::Message() << "type " << static_cast<int>(row.type);
    for (const auto& who : {kA, kB, kC}) {
      EXPECT_FALSE(rules_.Conflicts(who, Access::kNone)) << name;
      EXPECT_FALSE(rules_.Conflicts(who, Access::kStatus)) << name;
    }
    EXPECT_FALSE(rules_.Conflicts(kA, Access::kRead)) << name;
    EXPECT_FALSE(rules_.Conflicts(kA, Access::kWrite)) << name;
    EXPECT_EQ(rules_.Conflicts(kB, Access::kRead), row.read_registered) << name;
    EXPECT_EQ(rules_.Conflicts(kB, Access::kWrite), row.write_registered) << name;
    EXPECT_EQ(rules_.Conflicts(kC, Access::kRead), row.read_other) << name;
    EXPECT_EQ(rules_.Conflicts(kC, Access::kWrite), row.write_other) << name;
    ASSERT_EQ(rules_.HandleOut(kA, Make(Out::kRelease, kKeyA, 0, row.type)), kGood);
  }
}

TEST_F(Reservations, TheOlderReserve) {
  EXPECT_EQ(rules_.Reserve(kA), kGood);
  EXPECT_EQ(rules_.Reserve(kA), kGood);
  EXPECT_EQ(rules_.Reserve(kB), kConflict);
  EXPECT_TRUE(rules_.Conflicts(kB, Access::kStatus));
  EXPECT_FALSE(rules_.Conflicts(kB, Access::kNone));
  EXPECT_FALSE(rules_.Conflicts(kA, Access::kWrite));
  EXPECT_EQ(Register(kA, kKeyA), kConflict) << "the two do not mix";
  std::vector<uint8_t> answer;
  EXPECT_EQ(rules_.HandleIn(0, &answer), kConflict);
  EXPECT_EQ(rules_.Release(kB), kGood);
  EXPECT_TRUE(rules_.Conflicts(kB, Access::kStatus)) << "not its own";
  EXPECT_EQ(rules_.Release(kA), kGood);
  EXPECT_TRUE(rules_.IsQuiet());
  EXPECT_EQ(rules_.Reserve(kA), kGood);
  rules_.ResetInitiator(kA);
  EXPECT_TRUE(rules_.IsQuiet());
}

TEST_F(Reservations, TheOlderReserveBesidePersistentOnes) {
  RegisterAll();
  EXPECT_EQ(rules_.Reserve(kA), kConflict) << "somebody is registered";
  EXPECT_EQ(rules_.Release(kA), kConflict);
  EXPECT_EQ(Reserve(kA, kKeyA, Type::kWriteExclusive), kGood);
  EXPECT_EQ(rules_.Reserve(kA), kGood) << "it holds it";
  EXPECT_EQ(rules_.Release(kA), kGood);
  EXPECT_EQ(rules_.Reserve(kB), kConflict);
  EXPECT_EQ(Reserved(), Type::kWriteExclusive) << "neither changed anything";
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kRelease, kKeyA, 0, Type::kWriteExclusive)), kGood);
  EXPECT_EQ(Reserve(kA, kKeyA, Type::kWriteExclusiveRegistrantsOnly), kGood);
  EXPECT_EQ(rules_.Reserve(kB), kGood) << "a registrant";
  EXPECT_EQ(rules_.Reserve(Id(9)), kConflict);
}

TEST_F(Reservations, WhatTheyTell) {
  EXPECT_EQ(Read(PersistentReservations::In::kKeys), std::vector<uint8_t>(8));
  EXPECT_EQ(Read(PersistentReservations::In::kReservation), std::vector<uint8_t>(8));
  EXPECT_EQ(Read(PersistentReservations::In::kCapabilities),
            (std::vector<uint8_t>{0, 8, 0x10, 0x90, 0xea, 0x01, 0, 0}));
  EXPECT_EQ(Register(kA, kKeyA), kGood);
  EXPECT_EQ(Register(kB, 0x0102030405060708), kGood);
  EXPECT_EQ(Reserve(kB, 0x0102030405060708, Type::kExclusiveAccess), kGood);
  EXPECT_EQ(Read(PersistentReservations::In::kKeys),
            (std::vector<uint8_t>{0, 0, 0, 2,    0, 0, 0, 16, 0, 0, 0, 0,
                                  0, 0, 0, 0xa1, 1, 2, 3, 4,  5, 6, 7, 8}));
  EXPECT_EQ(Read(PersistentReservations::In::kReservation),
            (std::vector<uint8_t>{0, 0, 0, 2, 0, 0, 0, 16, 1, 2, 3, 4,
                                  5, 6, 7, 8, 0, 0, 0, 0,  0, 3, 0, 0}));
  const auto full = Read(PersistentReservations::In::kFullStatus);
  ASSERT_EQ(full.size(), 8u + 2 * 48);
  const std::vector<uint8_t> second(full.begin() + 56, full.end());
  EXPECT_EQ(second, (std::vector<uint8_t>{
                        1,    2,    3,    4,    5, 6, 7, 8,  0,    0, 0, 0, 0x01, 0x03, 0,    0,
                        0,    0,    0,    1,    0, 0, 0, 24, 0x06, 0, 0, 0, 0x3b, 0x1b, 0x1b, 0x1b,
                        0x1b, 0x1b, 0x1b, 0x1b, 0, 0, 0, 0,  0,    0, 0, 0, 0,    0,    0,    0}));
  EXPECT_EQ(full[20], 0) << "A does not hold it";
  // All registrants: the holder has no key of its own.
  EXPECT_EQ(rules_.HandleOut(kB, Make(Out::kPreempt, 0x0102030405060708, 0x0102030405060708,
                                      Type::kWriteExclusiveAllRegistrants)),
            kGood);
  const auto all = Read(PersistentReservations::In::kReservation);
  EXPECT_EQ(scsi::GetBe<uint64_t>(all, 8), 0u);
  EXPECT_EQ(Read(PersistentReservations::In::kFullStatus)[20], 1);
}

TEST_F(Reservations, AbortsEndWhatWasUnderWay) {
  RegisterAll();
  const uint64_t own = rules_.BeginCommand(kA);
  const uint64_t first = rules_.BeginCommand(kB);
  const uint64_t second = rules_.BeginCommand(kB);
  EXPECT_TRUE(rules_.EndCommand(kB, first));
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kPreempt, kKeyA, kKeyC, Type::kWriteExclusive)), kGood);
  EXPECT_TRUE(rules_.AbortsAreDone());
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kPreemptAndAbort, kKeyA, kKeyB, Type::kWriteExclusive)),
            kGood);
  EXPECT_FALSE(rules_.AbortsAreDone());
  const uint64_t later = rules_.BeginCommand(kB);
  EXPECT_FALSE(rules_.EndCommand(kB, second)) << "aborted";
  EXPECT_TRUE(rules_.AbortsAreDone());
  EXPECT_TRUE(rules_.EndCommand(kB, later));
  EXPECT_TRUE(rules_.EndCommand(kA, own)) << "who preempts is not preempted";
}

TEST(PersistentReservationsStore, KeepsWhatOutlivesPower) {
  std::vector<std::string> stored;
  bool works = true;
  PersistentReservations rules([&](const std::string& state) {
    if (works) stored.push_back(state);
    return works;
  });
  OutRequest request = Make(Out::kRegister, 0, kKeyA);
  EXPECT_EQ(rules.HandleOut(kA, request), kGood);
  EXPECT_TRUE(stored.empty()) << "it did not ask for it";
  request = Make(Out::kRegister, kKeyA, kKeyA);
  request.persist = true;
  works = false;
  EXPECT_EQ(rules.HandleOut(kA, request), Failed(scsi::kInternalTargetFailure));
  works = true;
  EXPECT_EQ(rules.HandleOut(kA, request), kGood);
  EXPECT_EQ(rules.HandleOut(kA, Make(Out::kReserve, kKeyA, 0, Type::kExclusiveAccess)), kGood);
  ASSERT_EQ(stored.size(), 2u);
  std::vector<uint8_t> capabilities;
  EXPECT_EQ(rules.HandleIn(2, &capabilities), kGood);
  EXPECT_EQ(capabilities, (std::vector<uint8_t>{0, 8, 0x11, 0x91, 0xea, 0x01, 0, 0}));

  PersistentReservations again([](const std::string&) { return true; });
  ASSERT_TRUE(again.RestorePersistent(stored.back()).ok());
  EXPECT_TRUE(again.Conflicts(kB, Access::kRead));
  EXPECT_FALSE(again.Conflicts(kA, Access::kWrite));
  EXPECT_FALSE(again.RestorePersistent("\xff").ok());
  EXPECT_FALSE(again.RestorePersistent("").ok());

  rules.PowerCycle();
  EXPECT_TRUE(rules.Conflicts(kB, Access::kRead)) << "as after RestorePersistent";
  EXPECT_EQ(stored.size(), 2u);
  // A registration without APTPL takes it back.
  EXPECT_EQ(rules.HandleOut(kA, Make(Out::kRegister, kKeyA, kKeyA)), kGood);
  EXPECT_EQ(stored.back(), "");
  rules.PowerCycle();
  EXPECT_TRUE(rules.IsQuiet());
}

// --- saved state

state::ScsiReservations Saved(const PersistentReservations& rules) {
  state::ScsiReservations saved;
  rules.Save(&saved);
  return saved;
}

TEST_F(Reservations, StateIsKept) {
  RegisterAll();
  EXPECT_EQ(Reserve(kB, kKeyB, Type::kWriteExclusiveRegistrantsOnly), kGood);
  EXPECT_EQ(rules_.HandleOut(kA, Make(Out::kPreempt, kKeyA, kKeyC, Type::kWriteExclusive)), kGood);
  const auto saved = Saved(rules_);
  PersistentReservations other;
  ASSERT_TRUE(other.Restore(saved).ok());
  EXPECT_EQ(Saved(other).SerializeAsString(), saved.SerializeAsString());
  EXPECT_EQ(other.TakeAttention(kC), scsi::kRegistrationsPreempted);
  EXPECT_TRUE(other.Conflicts(kC, Access::kWrite));
  rules_.PowerCycle();
  EXPECT_EQ(Saved(rules_).ByteSizeLong(), 0u);
}

TEST_F(Reservations, SavedStateIsChecked) {
  RegisterAll();
  EXPECT_EQ(Reserve(kB, kKeyB, Type::kWriteExclusive), kGood);
  const auto good = Saved(rules_);
  using Message = state::ScsiReservations;
  const std::function<void(Message*)> kFaults[] = {
      [](Message* m) { m->set_type(2); },
      [](Message* m) { m->set_type(9); },
      [](Message* m) { m->clear_registrations(); },
      [](Message* m) { m->set_holder("short"); },
      [](Message* m) { m->set_holder(std::string(16, 'x')); },
      [](Message* m) { m->set_type(0); },
      [](Message* m) { m->mutable_registrations(0)->set_key(0); },
      [](Message* m) { m->mutable_registrations(0)->set_initiator("x"); },
      [](Message* m) { *m->add_registrations() = m->registrations(0); },
      [](Message* m) { m->set_reserver(std::string(16, 'x')); },
      [](Message* m) { m->set_persist(true); },
      [](Message* m) {
        m->add_attentions()->set_initiator(std::string(16, 'x'));
        m->mutable_attentions(0)->set_asc(0x29);
      },
      [](Message* m) {
        for (int i = 0; i < 800; ++i) m->add_attentions();
      },
      [](Message* m) {
        for (int i = 0; i < 300; ++i) m->add_registrations();
      },
  };
  const std::string before = good.SerializeAsString();
  for (size_t i = 0; i < std::size(kFaults); ++i) {
    Message bad = good;
    kFaults[i](&bad);
    EXPECT_FALSE(rules_.Restore(bad).ok()) << "fault " << i;
    EXPECT_EQ(Saved(rules_).SerializeAsString(), before);
  }
}

// --- generated sequences

/// The same rules once more, written down as tables of facts rather than as steps.
class Model {
 public:
  std::map<int, uint64_t> keys;
  int type = 0;
  int holder = -1;
  uint32_t generation = 0;
  std::map<int, std::set<int>> told;  ///< ASCQs

  static bool AllHold(int type) { return type >= 7; }
  static bool Shared(int type) { return type >= 5; }
  bool Holds(int who) const {
    return type != 0 && (AllHold(type) ? keys.count(who) != 0 : holder == who);
  }
  /// 'g' good, 'c' conflict, 'f' check condition.
  char Do(int who, Out action, uint64_t key, uint64_t action_key, int wanted) {
    const auto before = keys;
    const bool registered = keys.count(who) != 0;
    const auto leave = [&](int gone) {
      const bool held = Holds(gone);
      keys.erase(gone);
      if (!held || (AllHold(type) && !keys.empty())) return;
      if (Shared(type)) Tell(gone, 4);
      type = 0;
      holder = -1;
    };
    if (action == Out::kRegister || action == Out::kRegisterAndIgnore) {
      if (action == Out::kRegister && key != (registered ? keys[who] : 0)) return 'c';
      if (!registered && action_key == 0) return 'g';
      if (action_key == 0)
        leave(who);
      else
        keys[who] = action_key;
      ++generation;
      return 'g';
    }
    if (!registered || keys[who] != key) return 'c';
    switch (action) {
      case Out::kReserve:
        if (type != 0) return Holds(who) && type == wanted ? 'g' : 'c';
        type = wanted;
        holder = AllHold(wanted) ? -1 : who;
        return 'g';
      case Out::kRelease:
        if (!Holds(who)) return 'g';
        if (type != wanted) return 'f';
        if (Shared(type)) Tell(who, 4);
        type = 0;
        holder = -1;
        return 'g';
      case Out::kClear:
        Tell(who, 3);
        keys.clear();
        type = 0;
        holder = -1;
        ++generation;
        return 'g';
      default:
        break;
    }
    if (action_key == 0 && !AllHold(type)) return 'f';
    bool anybody = action_key == 0;
    for (const auto& [other, k] : keys) anybody = anybody || k == action_key;
    if (!anybody) return 'c';
    const bool takes = AllHold(type) ? action_key == 0 : type != 0 && keys[holder] == action_key;
    const int old_type = type;
    if (takes) {
      type = 0;
      holder = -1;
    }
    for (const auto& [other, k] : before) {
      if (action_key != 0 && k != action_key) continue;
      if (takes && other == who) continue;
      leave(other);
      if (other != who) told[other].insert(5);
    }
    if (takes) {
      type = wanted;
      holder = AllHold(wanted) ? -1 : who;
      if (type != old_type) Tell(who, 4);
    }
    ++generation;
    return 'g';
  }

 private:
  void Tell(int except, int ascq) {
    for (const auto& [other, k] : keys) {
      if (other != except) told[other].insert(ascq);
    }
  }
};

TEST(PersistentReservationsModel, GeneratedSequencesAgree) {
  constexpr int kInitiators = 4;
  constexpr int kTypes[] = {1, 3, 5, 6, 7, 8};
  int good = 0;
  for (uint32_t seed = 0; seed < 400; ++seed) {
    std::mt19937 random(seed);
    Model model;
    auto rules = std::make_unique<PersistentReservations>();
    for (int step = 0; step < 60; ++step) {
      const int who = static_cast<int>(random() % kInitiators);
      const auto action = static_cast<Out>(random() % 7);
      const bool knows_key = random() % 5 != 0;
      const uint64_t key = knows_key && model.keys.count(who) != 0 ? model.keys[who] : random() % 4;
      const uint64_t action_key = random() % 4;  // few, so that some are shared
      const int type = kTypes[random() % 6];
      const char expected = model.Do(who, action, key, action_key, type);
      const Verdict verdict = rules->HandleOut(
          Id(static_cast<uint8_t>(who)), Make(action, key, action_key, static_cast<Type>(type)));
      const char got = verdict.good() ? 'g' : verdict == kConflict ? 'c' : 'f';
      ASSERT_EQ(got, expected) << "seed " << seed << " step " << step << " action "
                               << static_cast<int>(action);
      good += got == 'g';
      // What can be seen from outside.
      const auto saved = Saved(*rules);
      ASSERT_EQ(saved.generation(), model.generation);
      ASSERT_EQ(static_cast<int>(saved.type()), model.type) << "seed " << seed << " step " << step;
      ASSERT_EQ(static_cast<size_t>(saved.registrations_size()), model.keys.size());
      for (int other = 0; other < kInitiators; ++other) {
        const vmm::Guid id = Id(static_cast<uint8_t>(other));
        const bool inside = model.type == 0 || model.Holds(other) ||
                            (Model::Shared(model.type) && model.keys.count(other) != 0);
        const bool reads_excluded = model.type == 3 || model.type == 6 || model.type == 8;
        ASSERT_EQ(rules->Conflicts(id, Access::kWrite), !inside);
        ASSERT_EQ(rules->Conflicts(id, Access::kRead), !inside && reads_excluded);
      }
      if (random() % 8 == 0) {  // it is saved, and goes on elsewhere
        auto next = std::make_unique<PersistentReservations>();
        ASSERT_TRUE(next->Restore(saved).ok());
        ASSERT_EQ(Saved(*next).SerializeAsString(), saved.SerializeAsString());
        rules = std::move(next);
      }
      if (random() % 4 != 0) continue;
      std::set<int> told;
      while (const auto sense = rules->TakeAttention(Id(static_cast<uint8_t>(who))))
        ASSERT_TRUE(told.insert(sense->ascq).second) << "told twice";
      ASSERT_EQ(told, model.told[who]) << "seed " << seed << " step " << step;
      model.told[who].clear();
    }
  }
  EXPECT_GT(good, 5000) << "the sequences get somewhere";
}

}  // namespace
}  // namespace kvmbus::virtdev
