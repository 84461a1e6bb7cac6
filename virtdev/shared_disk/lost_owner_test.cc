// SPDX-License-Identifier: Apache-2.0
// The owner of a shared disk dies, and comes again or not: what its clients' guests are told.
#include <map>
#include <random>

#include "virtdev/shared_disk/shared_disk_test.h"

namespace kvmbus::virtdev::shared_disk_test {
namespace {

using Action = Node::Action;
using scsi::Status;

constexpr uint8_t kWriteExclusive = 1;

class LostOwner : public SharedDiskTest {
 protected:
  /// Turns the loop for a while; nothing may end.
  static void Turn(Node& node, int turns = 30) {
    for (int i = 0; i < turns; ++i) node.loop->RunOnce(1);
  }
  void Restart(Node& node) {
    StopOwner();
    Turn(node, 3);
    StartOwner();
    Turn(node);
  }
};

TEST_F(LostOwner, CommandsUnderWayWaitForTheNextAndAreRepeated) {
  fake_->set_timing(Timing::kHeld);
  Node a(socket_, 1);
  const auto read = a.Begin(Node::Cdb10(0x28, 0, 1), true, Bytes(512));
  const auto write = a.Begin(Node::Cdb10(0x2a, 9, 1), false, Bytes(512, 1));
  ASSERT_TRUE(Eventually([&] {
    a.loop->RunOnce(1);
    return fake_->held() == 2;
  }));
  StopOwner();
  const auto later = a.Begin(Node::Cdb10(0x28, 1, 1), true, Bytes(512));
  Turn(a);
  EXPECT_FALSE(read->ended) << "an old owner might still write into the buffer";
  EXPECT_FALSE(write->ended);
  EXPECT_FALSE(later->ended);
  fake_->set_timing(Timing::kInline);
  StartOwner();
  EXPECT_TRUE(a.Await(read).ended_with(Status::kBusy));
  EXPECT_TRUE(a.Await(write).ended_with(Status::kBusy));
  EXPECT_TRUE(a.Await(later).ended_with(Status::kBusy));
  EXPECT_TRUE(a.Ready().failed_with(scsi::kPowerOnOccurred));
  EXPECT_TRUE(a.Ready().good());
  EXPECT_TRUE(a.Write(9, Bytes(512, 1)).good());
}

TEST_F(LostOwner, PersistentReservationsOutliveItAndOthersDoNot) {
  Node a(socket_, 1), b(socket_, 2);
  ASSERT_TRUE(a.Register(0xa, true).good());
  ASSERT_TRUE(a.Reserve(Action::kReserve, kWriteExclusive, 0xa).good());
  Restart(a);
  Turn(b);
  EXPECT_TRUE(a.Ready().failed_with(scsi::kPowerOnOccurred));
  EXPECT_TRUE(b.Ready().failed_with(scsi::kPowerOnOccurred));
  EXPECT_EQ(a.ReadKeys(), std::vector<uint64_t>{0xa});
  EXPECT_TRUE(b.Write(0, Bytes(512)).ended_with(Status::kReservationConflict));
  ASSERT_TRUE(a.Register(0xaa, false).good());  // no longer persistent
  Restart(a);
  Turn(b);
  EXPECT_TRUE(a.Ready().failed_with(scsi::kPowerOnOccurred));
  EXPECT_TRUE(b.Ready().failed_with(scsi::kPowerOnOccurred));
  EXPECT_TRUE(a.ReadKeys().empty());
  EXPECT_TRUE(b.Write(0, Bytes(512)).good());
}

TEST_F(LostOwner, AChangeOfReservationsThatWasUnderWayIsNotRepeatedBlindly) {
  fake_->set_timing(Timing::kHeld);
  Node a(socket_, 1), b(socket_, 2);
  ASSERT_TRUE(a.Register(0xa).good());
  ASSERT_TRUE(b.Register(0xb).good());
  const auto write = b.Begin(Node::Cdb10(0x2a, 9, 1), false, Bytes(512, 1));
  ASSERT_TRUE(Eventually([&] { return fake_->held() == 1; }));
  // It waits for the other's write.
  const auto preempt = a.Begin(Node::ReserveOut(Action::kPreemptAndAbort, kWriteExclusive), false,
                               Node::Keys(0xa, 0xb, false));
  ASSERT_TRUE(Eventually([&] { return !reservations_->AbortsAreDone(); }));
  StopOwner();
  fake_->set_timing(Timing::kInline);
  StartOwner();
  EXPECT_TRUE(a.Await(preempt).failed_with(scsi::kPowerOnOccurred));
  EXPECT_TRUE(b.Await(write).ended_with(Status::kBusy));
}

TEST_F(LostOwner, AFlushDoesNotCoverWhatDiedWithIt) {
  Node a(socket_, 1), b(socket_, 2);
  ASSERT_TRUE(a.Write(0, Bytes(512)).good());
  ASSERT_TRUE(b.Write(1, Bytes(512)).good());
  ASSERT_TRUE(b.Flush().good());
  Restart(a);
  Turn(b);
  EXPECT_TRUE(a.Flush().failed_with(scsi::kPowerOnOccurred));
  EXPECT_TRUE(b.Flush().failed_with(scsi::kPowerOnOccurred));
  EXPECT_TRUE(a.Flush().failed_with(scsi::kWriteError)) << "its write had not been flushed";
  EXPECT_TRUE(b.Flush().good()) << "its write had been flushed";
  EXPECT_TRUE(a.Flush().good()) << "told once";
  ASSERT_TRUE(a.Write(0, Bytes(512)).good());
  EXPECT_TRUE(a.Flush().good());
  Restart(a);
  EXPECT_TRUE(a.Ready().failed_with(scsi::kPowerOnOccurred));
  EXPECT_TRUE(a.Flush().good());
}

TEST_F(LostOwner, AFlushThatWaitedForTheNextOwnerIsNotAnsweredWell) {
  Node a(socket_, 1);
  ASSERT_TRUE(a.Write(0, Bytes(512)).good());
  StopOwner();
  Turn(a, 5);
  const auto flush = a.Begin(Node::Cdb10(0x35, 0, 0), false, {});
  StartOwner();
  EXPECT_TRUE(a.Await(flush).ended_with(Status::kBusy));
  EXPECT_TRUE(a.Ready().failed_with(scsi::kPowerOnOccurred));
  EXPECT_TRUE(a.Flush().failed_with(scsi::kWriteError));
}

TEST_F(LostOwner, WhatALimitHeldBackIsRepeatedToo) {
  Node a(socket_, 1);
  ASSERT_TRUE(a.Ready().good());
  a.disk->qos()->SetLimits({.max_iops = 1});
  a.loop->RunOnce(0);
  std::vector<std::shared_ptr<Outcome>> writes;
  for (uint32_t i = 0; i < 2; ++i)
    writes.push_back(a.Begin(Node::Cdb10(0x2a, i, 1), false, Bytes(512, 0xaa)));
  ASSERT_FALSE(a.Await(writes.back(), 1).ended);
  StopOwner();
  StartOwner();
  for (int i = 0; i < 5000 && a.disk->link().state != RemoteDisk::Link::State::kUp; ++i)
    a.loop->RunOnce(1);
  EXPECT_TRUE(a.Await(writes.back()).ended_with(Status::kBusy)) << "the guest hears first";
  EXPECT_TRUE(a.Ready().failed_with(scsi::kPowerOnOccurred));
  EXPECT_TRUE(a.Read(1, 1).good());
}

TEST_F(LostOwner, PatienceEnds) {
  Node a(socket_, 1, 50'000'000);
  ASSERT_TRUE(a.Ready().good());
  StopOwner();
  const auto read = a.Begin(Node::Cdb10(0x28, 0, 1), true, Bytes(512));
  EXPECT_TRUE(a.Await(read).failed_with(scsi::kInternalTargetFailure));
  EXPECT_TRUE(a.Read(0, 1).failed_with(scsi::kInternalTargetFailure)) << "at once";
  EXPECT_FALSE(a.unit->Save().ok());
  StartOwner();
  EXPECT_TRUE(Eventually([&] {
    a.loop->RunOnce(1);
    return a.Read(0, 1).good();
  }));
}

TEST_F(LostOwner, PatienceWithAnOwnerThatGivesNoQueueEnds) {
  fake_->FailOpenQueue(true);
  Node a(socket_, 1, 200'000'000);
  const auto read = a.Begin(Node::Cdb10(0x28, 0, 1), true, Bytes(512));
  Turn(a, 5);
  EXPECT_FALSE(read->ended);
  EXPECT_TRUE(a.Await(read).failed_with(scsi::kInternalTargetFailure));
  EXPECT_EQ(a.disk->link().state, RemoteDisk::Link::State::kUp);
  EXPECT_TRUE(a.Read(0, 1).failed_with(scsi::kInternalTargetFailure)) << "at once";
  fake_->FailOpenQueue(false);
  EXPECT_TRUE(Eventually([&] {
    a.loop->RunOnce(1);
    return a.Read(0, 1).good();
  })) << "it is asked all the same";
}

TEST_F(LostOwner, AMachineThatStopsDoesNotWaitForIt) {
  fake_->set_timing(Timing::kHeld);
  Node a(socket_, 1);
  const auto read = a.Begin(Node::Cdb10(0x28, 0, 1), true, Bytes(512));
  ASSERT_TRUE(Eventually([&] {
    a.loop->RunOnce(1);
    return fake_->held() == 1;
  }));
  StopOwner();
  a.queue->Drain();
  EXPECT_TRUE(read->ended_with(Status::kBusy));
  fake_->set_timing(Timing::kInline);
  StartOwner();
}

TEST_F(LostOwner, DrainWaitsForAnOwnerThatLives) {
  fake_->set_timing(Timing::kPosted);
  Node a(socket_, 1);
  std::vector<std::shared_ptr<Outcome>> reads;
  for (uint32_t i = 0; i < 100; ++i)
    reads.push_back(a.Begin(Node::Cdb10(0x28, i, 1), true, Bytes(512)));
  // One of many steps, which the stop ends early.
  const auto verify = a.Begin(Node::Cdb10(0x2f, 0, 8000), false, {});
  a.queue->Drain();
  for (const auto& read : reads) EXPECT_TRUE(read->good());
  EXPECT_TRUE(verify->ended);
}

/// Random commands of two machines against a plain model, while owners come and go. Whatever was
/// acknowledged is there; what was answered BUSY may be or not.
TEST_F(LostOwner, NothingAcknowledgedIsLost) {
  constexpr uint32_t kBlocks = 64;
  fake_->set_timing(Timing::kPosted);
  StopOwner();
  two_loops_ = true;
  StartOwner();
  Node a(socket_, 1), b(socket_, 2);
  std::mt19937 random(20261128);
  std::map<uint32_t, std::vector<uint8_t>> possible;  // by block: the first byte it may have
  for (uint32_t block = 0; block < kBlocks; ++block) possible[block] = {0};
  struct Under {
    std::shared_ptr<Outcome> outcome;
    Node* node;
    uint32_t block;
    uint8_t value;
    bool write;
  };
  std::vector<Under> under;
  unsigned good = 0, repeated = 0;
  for (int round = 0; round < 600; ++round) {
    Node& node = random() % 2 == 0 ? a : b;
    const uint32_t block = random() % kBlocks;
    const bool busy = std::any_of(under.begin(), under.end(),
                                  [&](const Under& other) { return other.block == block; });
    if (!busy) {
      const auto value = static_cast<uint8_t>(1 + random() % 255);
      const bool write = random() % 2 == 0;
      const Bytes data(512, write ? value : 0);
      under.push_back({node.Begin(Node::Cdb10(write ? 0x2a : 0x28, block, 1), !write, data), &node,
                       block, value, write});
    }
    if (round % 75 == 74) {
      StopOwner();
      StartOwner();
    }
    a.loop->RunOnce(random() % 2 == 0 ? 1 : 0);
    b.loop->RunOnce(0);
    const bool last = round == 599;
    for (auto at = under.begin(); at != under.end();) {
      if (last) at->node->Await(at->outcome);
      if (!at->outcome->ended) {
        ++at;
        continue;
      }
      auto& values = possible[at->block];
      if (at->outcome->good()) {
        ++good;
        if (at->write) {
          values = {at->value};
        } else {
          EXPECT_NE(std::find(values.begin(), values.end(), at->outcome->data[0]), values.end());
          EXPECT_EQ(at->outcome->data, Bytes(512, at->outcome->data[0]));
        }
      } else {
        ++repeated;
        EXPECT_TRUE(at->outcome->status == Status::kBusy ||
                    at->outcome->failed_with(scsi::kPowerOnOccurred));
        if (at->write) values.push_back(at->value);
      }
      at = under.erase(at);
    }
  }
  for (uint32_t block = 0; block < kBlocks; ++block) {
    const auto& values = possible[block];
    EXPECT_NE(std::find(values.begin(), values.end(), fake_->content()[block * 512]), values.end());
  }
  EXPECT_GT(good, 100u);
  EXPECT_GT(repeated, 5u);
}

}  // namespace
}  // namespace kvmbus::virtdev::shared_disk_test
