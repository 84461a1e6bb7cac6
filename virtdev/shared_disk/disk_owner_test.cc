// SPDX-License-Identifier: Apache-2.0
// Several virtual machines on one disk: data, reservations, and who may come and go.
#include <sys/mman.h>

#include <cstring>
#include <random>
#include <thread>

#include "virtdev/shared_disk/shared_disk_test.h"
#include "vmm/os/unix_socket.h"

namespace kvmbus::virtdev::shared_disk_test {
namespace {

using Action = Node::Action;
using scsi::Status;
using shared_disk::BytesOf;

constexpr uint8_t kWriteExclusive = 1, kWriteExclusiveRegistrants = 5;

TEST_F(SharedDiskTest, OneWritesTheOtherReads) {
  Node a(socket_, 1), b(socket_, 2);
  EXPECT_EQ(a.disk->info().size_bytes, kDiskBytes);
  EXPECT_EQ(a.disk->info().disk_id, fake_->info().disk_id);
  EXPECT_EQ(a.disk->format(), "fake");
  const Bytes data = Pattern(64 << 10, 7);
  ASSERT_TRUE(a.Write(100, data).good());
  b.memory->StartDirtyTracking();
  const Outcome read = b.Read(100, 128);
  ASSERT_TRUE(read.good());
  EXPECT_EQ(read.moved, data.size());
  EXPECT_EQ(read.data, data);
  const auto dirty = b.memory->TakeDirtyPages();
  EXPECT_GE(dirty.size(), data.size() / 4096);
  EXPECT_TRUE(std::any_of(dirty.begin(), dirty.end(), [](uint64_t pfn) { return pfn >= 1 << 20; }));
  EXPECT_TRUE(a.Flush().good());
  EXPECT_TRUE(a.In({0x12, 0, 0, 0, 96, 0}, 96).good()) << "INQUIRY";
  EXPECT_TRUE(a.Read(kDiskBytes / 512, 1).failed_with(scsi::kLbaOutOfRange));
}

TEST_F(SharedDiskTest, ManyCommandsAreUnderWayAtOnce) {
  fake_->set_timing(Timing::kPosted);
  Node a(socket_, 1);
  ASSERT_TRUE(a.Ready().good());
  std::vector<std::shared_ptr<Outcome>> outcomes;
  for (uint32_t i = 0; i < DiskRing::kSlots; ++i)
    outcomes.push_back(a.Begin(Node::Cdb10(0x28, i, 1), true, Bytes(512)));
  const auto beyond = a.Begin(Node::Cdb10(0x28, 0, 1), true, Bytes(512));
  EXPECT_TRUE(beyond->ended_with(Status::kBusy)) << "the guest repeats it";
  for (const auto& outcome : outcomes) EXPECT_TRUE(a.Await(outcome).good());
}

TEST_F(SharedDiskTest, ReservationsBindAllButTheirHolders) {
  Node a(socket_, 1), b(socket_, 2);
  ASSERT_TRUE(a.Register(0xa).good());
  ASSERT_TRUE(a.Reserve(Action::kReserve, kWriteExclusive, 0xa).good());
  EXPECT_TRUE(b.Write(0, Bytes(512)).ended_with(Status::kReservationConflict));
  EXPECT_TRUE(b.Read(0, 1).good());
  EXPECT_TRUE(a.Write(0, Bytes(512)).good());
  ASSERT_TRUE(b.Register(0xb).good());
  EXPECT_EQ(a.ReadKeys(), (std::vector<uint64_t>{0xa, 0xb}));
  ASSERT_TRUE(b.Reserve(Action::kPreempt, kWriteExclusive, 0xb, 0xa).good());
  EXPECT_TRUE(a.Ready().failed_with(scsi::kRegistrationsPreempted)) << "told once";
  EXPECT_TRUE(a.Ready().good());
  EXPECT_TRUE(a.Write(0, Bytes(512)).ended_with(Status::kReservationConflict));
  EXPECT_TRUE(b.Write(0, Bytes(512)).good());
  EXPECT_EQ(b.ReadKeys(), std::vector<uint64_t>{0xb});
}

TEST_F(SharedDiskTest, PreemptAndAbortEndsTheOthersCommands) {
  Node a(socket_, 1), b(socket_, 2);
  ASSERT_TRUE(a.Register(0xa).good());
  ASSERT_TRUE(b.Register(0xb).good());
  ASSERT_TRUE(a.Reserve(Action::kReserve, kWriteExclusiveRegistrants, 0xa).good());
  fake_->set_timing(Timing::kPosted);
  std::vector<std::shared_ptr<Outcome>> writes;
  for (uint32_t i = 0; i < 50; ++i)
    writes.push_back(a.Begin(Node::Cdb10(0x2a, i, 1), false, Bytes(512, 0xaa)));
  ASSERT_TRUE(b.Reserve(Action::kPreemptAndAbort, kWriteExclusive, 0xb, 0xa).good());
  const Bytes before = fake_->content();
  for (const auto& write : writes) {
    const Outcome outcome = a.Await(write);
    EXPECT_TRUE(outcome.good() || outcome.status == Status::kTaskAborted ||
                outcome.status == Status::kReservationConflict ||
                outcome.failed_with(scsi::kRegistrationsPreempted));
  }
  EXPECT_EQ(fake_->content(), before) << "written after the promise that it is not";
}

TEST_F(SharedDiskTest, WhoGoesKeepsItsRegistrationButNotItsReserve) {
  Node b(socket_, 2);
  {
    Node a(socket_, 1);
    ASSERT_TRUE(a.Register(0xa).good());
    ASSERT_TRUE(a.Out({0x16, 0, 0, 0, 0, 0}).ended_with(Status::kReservationConflict))
        << "RESERVE of a registered one";
  }
  {
    Node c(socket_, 3);
    ASSERT_TRUE(b.Register(0).good());
  }
  Node a(socket_, 1);
  EXPECT_EQ(a.ReadKeys(), std::vector<uint64_t>{0xa}) << "a machine that stops is still registered";
  ASSERT_TRUE(a.Register(0).good());
  {
    Node c(socket_, 3);
    ASSERT_TRUE(c.Out({0x16, 0, 0, 0, 0, 0}).good());
    EXPECT_TRUE(b.Write(0, Bytes(512)).ended_with(Status::kReservationConflict));
  }
  EXPECT_TRUE(Eventually([&] { return b.Write(0, Bytes(512)).good(); })) << "RESERVE ends with it";
}

TEST_F(SharedDiskTest, TheSameMachineComesOnce) {
  Node a(socket_, 1);
  RemoteDisk::Options options;
  options.socket_path = socket_;
  options.initiator = Id(1);
  options.connect_ns = 1'000'000;
  const auto again = RemoteDisk::Connect(options, *a.memory, *a.loop);
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().code(), vmm::Code::kUnavailable);
  options.initiator = Id(2);
  options.socket_path += ".none";
  EXPECT_EQ(RemoteDisk::Connect(options, *a.memory, *a.loop).error().code(), vmm::Code::kNotFound);
}

TEST_F(SharedDiskTest, AClientThatDiesInTheMiddleIsCleanedUp) {
  fake_->set_timing(Timing::kHeld);
  auto memory = NewMemory();
  vmm::Fd control = *vmm::ConnectUnix(socket_);
  shared_disk::Hello hello;
  hello.kind = shared_disk::Kind::kClient;
  hello.initiator[0] = 1;
  hello.ranges = 2;
  hello.range[0] = {0, kLowBytes};
  hello.range[1] = {kHighGpa, kHighBytes};
  const int fd = memory->fd();
  ASSERT_TRUE(vmm::SendFrame(control.get(), BytesOf(hello), {&fd, 1}).ok());
  shared_disk::HelloReply reply;
  ASSERT_TRUE(vmm::ReceiveFrame(control.get(), BytesOf(reply), 5000).ok());
  ASSERT_EQ(reply.code, 0u);
  auto ring = *DiskRing::Create();
  vmm::Fd queue = *vmm::ConnectUnix(socket_);
  hello.kind = shared_disk::Kind::kQueue;
  hello.token = reply.token;
  const int ring_fd = ring->fd();
  ASSERT_TRUE(vmm::SendFrame(queue.get(), BytesOf(hello), {&ring_fd, 1}).ok());
  ASSERT_TRUE(vmm::ReceiveFrame(queue.get(), BytesOf(reply), 5000).ok());
  ASSERT_EQ(reply.code, 0u);
  GuestBuffer data;
  ASSERT_TRUE(data.AppendRange(*memory, 0, 512));
  ASSERT_TRUE(ring->PutCommand(5, {{0x2a, 0, 0, 0, 0, 0, 0, 0, 1}, 10, 0, 0}, data));
  ring->Push(5);
  (void)ring->Publish();
  const uint8_t doorbell = 0;
  ASSERT_TRUE(vmm::SendFrame(queue.get(), {&doorbell, 1}).ok());
  ASSERT_TRUE(Eventually([&] { return fake_->held() == 1; }));
  control.Reset();
  queue.Reset();
  memory.reset();
  ::usleep(20000);
  EXPECT_EQ(fake_->open_queues(), 1u) << "its command is still under way";
  Release();
  fake_->set_timing(Timing::kInline);
  EXPECT_TRUE(Eventually([&] {
    Release();
    return fake_->open_queues() == 0;
  }));
  Node a(socket_, 1);
  EXPECT_TRUE(a.Ready().good());
}

TEST_F(SharedDiskTest, TheOwnerIsIdleWhenNobodyIsLeft) {
  ASSERT_TRUE(Eventually([&] { return idle_.load(); })) << "nobody came";
  vmm::Fd hold = *vmm::ConnectUnix(socket_);
  const shared_disk::Hello hello;
  ASSERT_TRUE(vmm::SendFrame(hold.get(), BytesOf(hello)).ok());
  shared_disk::HelloReply reply;
  ASSERT_TRUE(vmm::ReceiveFrame(hold.get(), BytesOf(reply), 5000).ok());
  EXPECT_EQ(reply.code, 0u);
  EXPECT_EQ(reply.size_bytes, kDiskBytes);
  idle_ = false;
  { Node a(socket_, 1); }
  ::usleep(20000);
  EXPECT_FALSE(idle_.load());
  fake_->TakeSeen();
  hold.Reset();
  EXPECT_TRUE(Eventually([&] { return idle_.load(); }));
}

TEST_F(SharedDiskTest, WhatAClientWroteIsFlushedWhenItGoes) {
  {
    Node a(socket_, 1);
    ASSERT_TRUE(a.Write(0, Bytes(512)).good());
    fake_->TakeSeen();
  }
  EXPECT_TRUE(Eventually([&] { return fake_->open_queues() == 0; }));
  const auto seen = fake_->TakeSeen();
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].op, tests::FakeDisk::Op::kFlush);
}

TEST_F(SharedDiskTest, SavedAndRestoredAndReset) {
  Node a(socket_, 1);
  EXPECT_TRUE(a.Out({0xff, 0, 0, 0, 0, 0}).failed_with(scsi::kInvalidOpcode));
  const auto saved = a.unit->Save();
  ASSERT_TRUE(saved.ok());
  EXPECT_EQ(saved->reported_sectors, kDiskBytes / 512);
  EXPECT_EQ(saved->stored_sense, scsi::kInvalidOpcode);
  a.unit->Reset();
  EXPECT_EQ(a.unit->Save()->stored_sense, scsi::kNoSense);
  ASSERT_TRUE(a.unit->Restore(*saved).ok());
  EXPECT_EQ(*a.unit->Save(), *saved);
  EXPECT_FALSE(a.unit->Restore({0, {}}).ok());
}

TEST_F(SharedDiskTest, AResizeIsHeardByAll) {
  Node a(socket_, 1), b(socket_, 2);
  ASSERT_TRUE(a.Ready().good());
  ASSERT_TRUE(b.Ready().good());
  unsigned heard = 0;
  for (Node* node : {&a, &b}) node->disk->SetResizeListener([&] { ++heard; });
  fake_->Resize(2 * kDiskBytes);
  for (int i = 0; i < 5000 && heard < 2; ++i) {
    a.loop->RunOnce(1);
    b.loop->RunOnce(1);
  }
  EXPECT_EQ(heard, 2u);
  for (Node* node : {&a, &b}) {
    EXPECT_EQ(node->disk->info().size_bytes, 2 * kDiskBytes);
    EXPECT_TRUE(node->Ready().failed_with(scsi::kCapacityChanged));
    EXPECT_TRUE(node->Ready().good());
  }
}

TEST_F(SharedDiskTest, LimitsAreOfOneMachineAlone) {
  Node a(socket_, 1), b(socket_, 2);
  ASSERT_TRUE(a.Write(0, Bytes(512)).good());
  a.disk->qos()->SetLimits({.max_iops = 2});
  a.loop->RunOnce(0);
  const auto first = a.Begin(Node::Cdb10(0x28, 0, 16), true, Bytes(8192));
  const auto second = a.Begin(Node::Cdb10(0x28, 16, 16), true, Bytes(8192));
  const auto third = a.Begin(Node::Cdb10(0x2a, 0, 1), false, Bytes(512));
  EXPECT_TRUE(a.Ready().good()) << "what moves no data waits for no limit";
  EXPECT_TRUE(a.Flush().good());
  EXPECT_TRUE(a.Await(first).good());
  for (uint32_t i = 0; i < 100; ++i) EXPECT_TRUE(b.Read(i, 1).good());
  EXPECT_TRUE(a.Await(second).good());
  EXPECT_TRUE(a.Await(third).good());
  const auto statistics = a.disk->qos()->Statistics();
  EXPECT_EQ(statistics.latency[DiskStatistics::kHeld].count, 2u);
  EXPECT_EQ(statistics.latency[DiskStatistics::kRead].count, 2u);
  EXPECT_EQ(statistics.bytes_read, 2u * 8192);
  EXPECT_EQ(statistics.bytes_written, 2u * 512);
  const auto other = b.disk->qos()->Statistics();
  EXPECT_EQ(other.latency[DiskStatistics::kRead].count, 100u);
  EXPECT_EQ(other.latency[DiskStatistics::kHeld].count, 0u);
}

/// Their blocks are the owner's to move, and not in the buffer.
TEST_F(SharedDiskTest, LimitsAreForVerifyAndWriteSameToo) {
  constexpr uint32_t kBytes = 2 << 20;
  Node a(socket_, 1);
  const auto held = [&] {
    return a.disk->qos()->Statistics().latency[DiskStatistics::kHeld].count;
  };
  const auto limit = [&](uint64_t bytes_per_second) {
    a.disk->qos()->SetLimits({.max_bytes_per_second = bytes_per_second});
    a.loop->RunOnce(0);
  };
  limit(10 << 20);
  EXPECT_TRUE(a.Out(Node::Cdb10(0x2f, 0, kBytes / 512)).good());
  EXPECT_TRUE(a.Read(0, 1).good());
  EXPECT_EQ(held(), 1u) << "VERIFY used up 200 ms of the limit";
  EXPECT_EQ(a.disk->qos()->Statistics().bytes_read, kBytes + 512u);
  limit(10 << 20);
  EXPECT_TRUE(a.Out(Node::Cdb10(0x41, 0, kBytes / 512), Bytes(512, 0x77)).good());
  EXPECT_TRUE(a.Read(0, 1).good());
  EXPECT_EQ(held(), 2u) << "WRITE SAME likewise";
  EXPECT_EQ(a.disk->qos()->Statistics().bytes_written, kBytes);
  // What the owner refuses at once costs no more than it could have: 4 MiB and 8 MiB, not TiBs.
  limit(100 << 20);
  Bytes beyond(16);
  scsi::PutBe<uint32_t>(beyond, 10, 0xffffffff);
  for (const uint8_t opcode : {0x8f, 0x93}) {
    beyond[0] = opcode;
    EXPECT_FALSE(a.Out(beyond, Bytes(512)).good());
  }
  EXPECT_TRUE(a.Read(0, 1).good()) << "in seconds";
  EXPECT_EQ(a.disk->qos()->Statistics().bytes_read, kBytes + 3 * 512u);
  EXPECT_EQ(a.disk->qos()->Statistics().bytes_written, kBytes);
}

TEST_F(SharedDiskTest, WhatFailedIsCountedSo) {
  Node node(socket_, 1);
  ASSERT_TRUE(node.Read(0, 16).good());
  fake_->InjectError(DiskRequest::Op::kRead, EIO);
  EXPECT_TRUE(node.Read(0, 16).failed_with(scsi::kReadError));
  EXPECT_FALSE(node.Read(kDiskBytes / 512, 1).good()) << "there is no such sector";
  const auto statistics = node.disk->qos()->Statistics();
  EXPECT_EQ(statistics.latency[DiskStatistics::kRead].count, 3u);
  EXPECT_EQ(statistics.errors, 1u);
  EXPECT_EQ(statistics.bytes_read, 8192u);
}

/// What an owner answers to a growth.
class Growing {
 public:
  Growing(const std::string& socket, uint64_t size_bytes) : socket_(*vmm::ConnectUnix(socket)) {
    shared_disk::Hello hello;
    hello.kind = shared_disk::Kind::kGrowth;
    hello.range[0] = {0, size_bytes};
    EXPECT_TRUE(vmm::SendFrame(socket_.get(), BytesOf(hello)).ok());
  }
  shared_disk::HelloReply Await() {
    shared_disk::HelloReply reply;
    EXPECT_TRUE(vmm::ReceiveFrame(socket_.get(), BytesOf(reply), 5000).ok());
    uint8_t more = 0;
    EXPECT_FALSE(vmm::ReceiveFrame(socket_.get(), {&more, 1}, 5000).ok()) << "it ends with that";
    return reply;
  }

 private:
  vmm::Fd socket_;
};

TEST_F(SharedDiskTest, AnAdministratorMakesItLarger) {
  Node a(socket_, 1);
  ASSERT_TRUE(a.Ready().good());
  const auto grown = Growing(socket_, 2 * kDiskBytes).Await();
  EXPECT_EQ(grown.code, 0u);
  EXPECT_EQ(grown.size_bytes, 2 * kDiskBytes);
  for (int i = 0; i < 5000 && a.disk->info().size_bytes == kDiskBytes; ++i) a.loop->RunOnce(1);
  EXPECT_TRUE(a.Ready().failed_with(scsi::kCapacityChanged));
  EXPECT_TRUE(a.Read(2 * kDiskBytes / 512 - 1, 1).good());
  const auto refused = Growing(socket_, kDiskBytes).Await();
  EXPECT_EQ(refused.code, static_cast<uint32_t>(vmm::Code::kInvalidArgument));
  EXPECT_EQ(refused.message.data(), std::string("smaller"));
  EXPECT_TRUE(a.Ready().good());
}

}  // namespace
}  // namespace kvmbus::virtdev::shared_disk_test
