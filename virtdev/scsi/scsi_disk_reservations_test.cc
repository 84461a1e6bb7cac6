// SPDX-License-Identifier: Apache-2.0
// Reservations as commands: two initiators of one disk.
#include "virtdev/scsi/scsi_test_disk.h"

namespace kvmbus::virtdev::scsi_test {
namespace {

constexpr uint64_t kKeyA = 0x11, kKeyB = 0x22;

class SharedDisk : public ScsiDiskTest {
 protected:
  SharedDisk() {
    a_ = NewInitiator(0xaa);
    b_ = NewInitiator(0xbb);
    From(a_);
  }
  std::shared_ptr<ScsiDisk> NewInitiator(uint8_t id) {
    ScsiDisk::Options options;
    options.reservations = rules_;
    options.initiator.bytes.fill(id);
    options.shared = true;
    return *ScsiDisk::Create(fake_, options);
  }
  void From(const std::shared_ptr<ScsiDisk>& initiator) { unit_ = initiator.get(); }

  static Bytes OutCdb(uint8_t action, uint8_t type = 0, uint32_t length = 24) {
    Bytes cdb(10);
    cdb[0] = 0x5f;
    cdb[1] = action;
    cdb[2] = type;
    scsi::PutBe<uint32_t>(cdb, 5, length);
    return cdb;
  }
  static Bytes List(uint64_t key, uint64_t action_key = 0, uint8_t flags = 0) {
    Bytes list(24);
    scsi::PutBe<uint64_t>(list, 0, key);
    scsi::PutBe<uint64_t>(list, 8, action_key);
    list[20] = flags;
    return list;
  }
  void RegisterBoth() {
    From(b_);
    ASSERT_TRUE(Out(OutCdb(0), List(0, kKeyB)).good());
    From(a_);
    ASSERT_TRUE(Out(OutCdb(0), List(0, kKeyA)).good());
  }

  std::shared_ptr<PersistentReservations> rules_ = std::make_shared<PersistentReservations>();
  std::shared_ptr<ScsiDisk> a_, b_;
};

TEST_F(SharedDisk, AnswersAreCutAtTheAllocationLength) {
  RegisterBoth();
  const Outcome keys = In({0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0}, 255);
  ASSERT_TRUE(keys.good());
  EXPECT_EQ(keys.moved, 24u);
  EXPECT_EQ(keys.data[7], 16) << "how long it would be";
  EXPECT_EQ(In({0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0}, 255).moved, 8u);
  EXPECT_EQ(In({0x5e, 3, 0, 0, 0, 0, 0, 0, 60, 0}, 255).moved, 60u);
  EXPECT_EQ(In({0x5e, 3, 0, 0, 0, 0, 0, 1, 0, 0}, 20).moved, 20u);
  EXPECT_EQ(In({0x5e, 2, 0, 0, 0, 0, 0, 0, 0, 0}, 20).moved, 0u);
  EXPECT_TRUE(In({0x5e, 4, 0, 0, 0, 0, 0, 0, 8, 0}, 8).failed_with(scsi::kInvalidFieldInCdb));
}

TEST_F(SharedDisk, TheParameterListHas24Bytes) {
  EXPECT_TRUE(Out(OutCdb(0, 0, 23), List(0, kKeyA)).failed_with(scsi::kParameterListLengthError));
  EXPECT_TRUE(
      Out(OutCdb(0, 0, 0x1000018), List(0, kKeyA)).failed_with(scsi::kParameterListLengthError));
  EXPECT_TRUE(Out(OutCdb(0), Bytes(23)).failed_with(scsi::kParameterListLengthError));
  EXPECT_TRUE(Run(OutCdb(0), true, List(0, kKeyA)).failed_with(scsi::kParameterListLengthError));
  EXPECT_TRUE(Out(OutCdb(9), List(0, kKeyA)).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(Out(OutCdb(0), List(0, kKeyA, 0x08)).failed_with(scsi::kInvalidFieldInList));
  EXPECT_TRUE(Out(OutCdb(0), List(0, kKeyA, 0x04)).failed_with(scsi::kInvalidFieldInList));
  EXPECT_TRUE(Out(OutCdb(0), List(0, kKeyA, 0x01)).failed_with(scsi::kInvalidFieldInList));
  EXPECT_TRUE(Out(OutCdb(0), List(5, kKeyA)).ended_with(scsi::Status::kReservationConflict));
  Bytes longer = List(0, kKeyA);
  longer.resize(100);
  EXPECT_EQ(Out(OutCdb(0), longer).moved, 24u);
}

/// Command blocks, each with what the rules of SPC and SBC take it for.
struct Rule {
  Bytes cdb;
  bool read_conflicts, write_conflicts;  ///< under exclusive access, under write exclusive
};

TEST_F(SharedDisk, EveryCommandKeepsTheRules) {
  const Rule kRules[] = {
      {{0x00, 0, 0, 0, 0, 0}, false, false},              // TEST UNIT READY
      {{0x12, 0, 0, 0, 0, 0}, false, false},              // INQUIRY
      {{0x03, 0, 0, 0, 0, 0}, false, false},              // REQUEST SENSE
      {{0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false, false},  // READ CAPACITY
      {{0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false, false},
      {{0x5e, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false, false},  // PERSISTENT RESERVE IN
      {{0x1e, 0, 0, 0, 0, 0}, false, false},              // ALLOW REMOVAL
      {{0x1e, 0, 0, 0, 1, 0}, true, true},                // PREVENT REMOVAL
      {{0x1b, 0, 0, 0, 1, 0}, false, false},              // START
      {{0x1b, 0, 0, 0, 0, 0}, true, true},                // STOP
      {{0x1a, 0, 0x3f, 0, 0, 0}, true, false},            // MODE SENSE
      {{0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 0, 0}, true, false},
      {{0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, true, false},
      {{0x15, 0x10, 0, 0, 0, 0}, true, true},  // MODE SELECT
      {{0x55, 0x10, 0, 0, 0, 0, 0, 0, 0, 0}, true, true},
      {{0x08, 0, 0, 0, 1, 0}, true, false},  // READ
      {{0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, true, false},
      {{0xa8, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}, true, false},
      {{0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}, true, false},
      {{0x2f, 0, 0, 0, 0, 0, 0, 0, 1, 0}, true, false},  // VERIFY
      {{0x0a, 0, 0, 0, 1, 0}, true, true},               // WRITE
      {{0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, true, true},
      {{0xaa, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}, true, true},
      {{0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}, true, true},
      {{0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0}, true, true},  // WRITE AND VERIFY
      {{0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0}, true, true},  // SYNCHRONIZE CACHE
      {{0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0}, true, true},  // WRITE SAME
      {{0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}, true, true},
      {{0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0}, true, true},  // UNMAP
      {{0x04, 0, 0, 0, 0, 0}, true, true},              // FORMAT UNIT
      {{0x1d, 0x04, 0, 0, 0, 0}, true, true},           // SEND DIAGNOSTIC
  };
  ASSERT_TRUE(Out(OutCdb(0), List(0, kKeyA)).good());
  for (const uint8_t type : {1, 3, 5, 6, 7, 8}) {
    const bool excludes_reads = type == 3 || type == 6 || type == 8;
    From(a_);
    ASSERT_TRUE(Out(OutCdb(1, type), List(kKeyA)).good());
    for (const Rule& rule : kRules) {
      const auto name = testing::Message()
                        << "type " << int{type} << " command " << std::hex << int{rule.cdb[0]};
      const bool conflicts = excludes_reads ? rule.read_conflicts : rule.write_conflicts;
      From(b_);
      EXPECT_EQ(Out(rule.cdb, Bytes(512)).status == scsi::Status::kReservationConflict, conflicts)
          << name;
      From(a_);
      EXPECT_NE(Out(rule.cdb, Bytes(512)).status, scsi::Status::kReservationConflict) << name;
    }
    ASSERT_TRUE(Out(OutCdb(2, type), List(kKeyA)).good());
  }
}

TEST_F(SharedDisk, AConflictHasNoSenseAndLeavesTheDiskAlone) {
  RegisterBoth();
  ASSERT_TRUE(Out(OutCdb(1, 1), List(kKeyA)).good());
  (void)fake_->TakeSeen();
  From(b_);
  const Outcome write = Out({0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, Bytes(512));
  EXPECT_TRUE(write.ended_with(scsi::Status::kReservationConflict));
  EXPECT_TRUE(fake_->TakeSeen().empty());
  EXPECT_TRUE(In({0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 512).good());
}

TEST_F(SharedDisk, TheOthersHearOfItOnce) {
  RegisterBoth();
  ASSERT_TRUE(Out(OutCdb(1, 5), List(kKeyA)).good());
  ASSERT_TRUE(Out(OutCdb(4, 5), List(kKeyA, kKeyB)).good());
  From(b_);
  EXPECT_TRUE(In({0x12, 0, 0, 0, 36, 0}, 36).good()) << "INQUIRY consumes no attention";
  EXPECT_TRUE(Out({0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, Bytes(512))
                  .failed_with(scsi::kRegistrationsPreempted));
  EXPECT_TRUE(Out({0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0}, Bytes(512))
                  .ended_with(scsi::Status::kReservationConflict));
  ASSERT_TRUE(Out(OutCdb(0), List(0, kKeyB)).good());
  From(a_);
  ASSERT_TRUE(Out(OutCdb(2, 5), List(kKeyA)).good());
  EXPECT_TRUE(Out({0, 0, 0, 0, 0, 0}).good());
  From(b_);
  const Outcome sense = In({0x03, 0, 0, 0, 18, 0}, 18);
  EXPECT_EQ(sense.data[2], 6);
  EXPECT_EQ(sense.data[12], 0x2a);
  EXPECT_EQ(sense.data[13], 0x04);
  EXPECT_TRUE(Out({0, 0, 0, 0, 0, 0}).good());
}

TEST_F(SharedDisk, OldReserve) {
  EXPECT_TRUE(Out({0x16, 0x01, 0, 0, 0, 0}).failed_with(scsi::kInvalidFieldInCdb)) << "an extent";
  EXPECT_TRUE(Out({0x17, 0x10, 0, 0, 0, 0}).failed_with(scsi::kInvalidFieldInCdb));
  EXPECT_TRUE(Out({0x16, 0, 0, 0, 0, 0}).good());
  From(b_);
  EXPECT_TRUE(
      Out({0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0}).ended_with(scsi::Status::kReservationConflict));
  EXPECT_TRUE(Out({0, 0, 0, 0, 0, 0}).ended_with(scsi::Status::kReservationConflict));
  EXPECT_TRUE(Out(OutCdb(0), List(0, kKeyB)).ended_with(scsi::Status::kReservationConflict));
  a_->Reset();
  EXPECT_TRUE(Out({0, 0, 0, 0, 0, 0}).good()) << "a reset gives it up";
}

class Waiting final : public ScsiCompletion {
 public:
  void OnScsiComplete(ScsiCommand&) override { ++count; }
  unsigned count = 0;
};

/// A write of one sector by `initiator`, under way in a queue of its own.
struct HeldWrite {
  HeldWrite(ScsiDisk& initiator, tests::FakeDisk& disk, vmm::Loop& loop)
      : queue(*disk.OpenQueue(loop)) {
    write.completion = &waiting;
    write.cdb = {0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0};
    write.cdb_length = 10;
    write.data.AppendHost(data);
    initiator.Execute(write, queue.get(), &disk);
  }
  Bytes data = Bytes(512, 0x77);
  Waiting waiting;
  ScsiCommand write;
  const std::unique_ptr<DiskQueue> queue;
};

TEST_F(SharedDisk, PreemptAndAbortWaitsForWhatItAborts) {
  RegisterBoth();
  fake_->set_timing(Timing::kHeld);
  HeldWrite other(*b_, *fake_, *loop_);
  fake_->set_timing(Timing::kPosted);
  Begin(OutCdb(5, 3), false, List(kKeyA, kKeyB));
  for (int turn = 0; turn < 20; ++turn) loop_->RunOnce(1);
  EXPECT_EQ(outcome_.completions, 0u) << "B's write may still reach the disk";
  EXPECT_TRUE(fake_->TakeSeen().empty()) << "waiting costs the disk nothing";
  other.queue->Drain();
  EXPECT_EQ(other.waiting.count, 1u);
  EXPECT_EQ(other.write.status, scsi::Status::kTaskAborted);
  EXPECT_EQ(other.write.bytes_moved, 0u);
  for (int turn = 0; turn < 1000 && outcome_.completions == 0; ++turn) loop_->RunOnce(1);
  EXPECT_TRUE(outcome_.good());
  EXPECT_EQ(outcome_.moved, 24u);
  EXPECT_TRUE(rules_->Conflicts(vmm::Guid(), PersistentReservations::Access::kRead) == false)
      << "nothing was reserved: the preemption took a registration";
}

TEST_F(SharedDisk, PreemptAndAbortIsNotWaitedForByWhoGoes) {
  RegisterBoth();
  fake_->set_timing(Timing::kHeld);
  HeldWrite other(*b_, *fake_, *loop_);
  Begin(OutCdb(5, 3), false, List(kKeyA, kKeyB));
  command_.Interrupt();
  for (int turn = 0; turn < 5; ++turn) loop_->RunOnce(1);
  EXPECT_EQ(outcome_.completions, 0u) << "asked again, it would find nobody to preempt";
  command_.Abandon();
  EXPECT_TRUE(outcome_.ended_with(scsi::Status::kBusy)) << "at once";
  for (int turn = 0; turn < 5; ++turn) loop_->RunOnce(1);
  EXPECT_EQ(outcome_.completions, 1u);
  other.queue->Drain();
}

/// A command of many steps, aborted after its first: it may not go on to its end.
TEST_F(SharedDisk, PreemptAndAbortEndsCommandsOfManySteps) {
  Build(tests::FakeDisk::DefaultInfo(4 << 20));
  a_ = NewInitiator(0xaa);
  b_ = NewInitiator(0xbb);
  const Bytes unmap_list = {0, 38, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1,
                            0, 0,  0, 0,  0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0};
  struct Long {
    Bytes cdb, data;
  };
  const Long kLong[] = {
      {{0x2f, 0, 0, 0, 0, 0, 0, 8, 0, 0}, {}},                    // VERIFY
      {{0x2e, 0, 0, 0, 0, 0, 0, 0, 128, 0}, Bytes(65536, 0x77)},  // WRITE AND VERIFY
      {{0x41, 0, 0, 0, 0, 0, 0, 0x10, 0, 0}, Bytes(512, 0x77)},   // WRITE SAME, 2 MiB
      {{0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0}, unmap_list},           // UNMAP
  };
  const std::unique_ptr<DiskQueue> other_queue = *fake_->OpenQueue(*loop_);
  for (const Long& one : kLong) {
    const auto name = testing::Message() << std::hex << int{one.cdb[0]};
    fake_->set_timing(Timing::kInline);
    RegisterBoth();
    (void)fake_->TakeSeen();
    fake_->set_timing(Timing::kHeld);
    Bytes data = one.data;
    Waiting waiting;
    ScsiCommand command;
    command.completion = &waiting;
    std::copy(one.cdb.begin(), one.cdb.end(), command.cdb.begin());
    command.cdb_length = static_cast<uint8_t>(one.cdb.size());
    if (!data.empty()) command.data.AppendHost(data);
    b_->Execute(command, other_queue.get(), fake_.get());
    ASSERT_EQ(waiting.count, 0u) << name;
    Begin(OutCdb(5, 3), false, List(kKeyA, kKeyB));
    other_queue->Drain();
    EXPECT_EQ(waiting.count, 1u) << name;
    EXPECT_EQ(command.status, scsi::Status::kTaskAborted) << name;
    EXPECT_EQ(fake_->TakeSeen().size(), 1u) << name << ": what was under way";
    for (int turn = 0; turn < 1000 && outcome_.completions == 0; ++turn) loop_->RunOnce(1);
    EXPECT_TRUE(outcome_.good()) << name;
    From(b_);
    EXPECT_TRUE(Out({0, 0, 0, 0, 0, 0}).failed_with(scsi::kRegistrationsPreempted));
    From(a_);
    ASSERT_TRUE(Out(OutCdb(0), List(kKeyA, 0)).good());
  }
}

TEST_F(SharedDisk, ADiskOfOneInitiatorForgetsAtPowerOn) {
  unit_ = disk_.get();
  ASSERT_TRUE(Out(OutCdb(0), List(0, kKeyA)).good());
  ASSERT_TRUE(Out(OutCdb(1, 3), List(kKeyA)).good());
  EXPECT_TRUE(In({0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 512).good());
  disk_->Reset();
  EXPECT_EQ(In({0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0}, 8).data, Bytes(8));
  From(a_);
  ASSERT_TRUE(Out(OutCdb(0), List(0, kKeyA)).good());
  a_->Reset();
  EXPECT_EQ(In({0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0}, 8).data[7], 8) << "a shared one does not";
}

}  // namespace
}  // namespace kvmbus::virtdev::scsi_test
