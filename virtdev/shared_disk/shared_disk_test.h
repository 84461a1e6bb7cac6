// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the tests of shared disks have in common: an owner on threads of its own, and clients whose
/// loop the test turns by hand.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "tests/fakes/fake_disk.h"
#include "virtdev/shared_disk/disk_owner.h"
#include "virtdev/shared_disk/remote_queue.h"
#include "virtdev/shared_disk/remote_scsi_disk.h"

namespace kvmbus::virtdev::shared_disk_test {

using Bytes = std::vector<uint8_t>;
using Timing = tests::FakeDisk::Timing;

constexpr uint64_t kDiskBytes = 4 << 20;
constexpr uint64_t kHighGpa = uint64_t{1} << 32;
constexpr uint64_t kLowBytes = 1 << 20, kHighBytes = 2 << 20;

inline std::unique_ptr<vmm::GuestMemory> NewMemory() {
  const vmm::MemoryRange ranges[] = {{0, kLowBytes}, {kHighGpa, kHighBytes}};
  return *vmm::GuestMemory::Create(ranges);
}

inline vmm::Guid Id(uint8_t number) {
  vmm::Guid id;
  id.bytes[0] = number;
  return id;
}

struct Outcome {
  bool ended = false;
  scsi::Status status = scsi::Status::kGood;
  scsi::Sense sense;
  uint64_t moved = 0;
  Bytes data;

  bool good() const { return ended && status == scsi::Status::kGood; }
  bool failed_with(const scsi::Sense& wanted) const {
    return ended && status == scsi::Status::kCheckCondition && sense == wanted;
  }
  bool ended_with(scsi::Status wanted) const { return ended && status == wanted; }
};

/// A virtual machine that has the disk.
class Node : private ScsiCompletion {
 public:
  Node(const std::string& socket, uint8_t number, uint64_t patience_ns = 30'000'000'000) {
    RemoteDisk::Options options;
    options.socket_path = socket;
    options.initiator = Id(number);
    options.retry_ns = 1'000'000;
    options.patience_ns = patience_ns;
    auto connected = RemoteDisk::Connect(options, *memory, *loop);
    EXPECT_TRUE(connected.ok()) << connected.error().ToString();
    disk = *connected;
    unit = std::make_shared<RemoteScsiDisk>(disk);
    queue = *disk->OpenQueue(*loop);
  }
  ~Node() override {
    queue.reset();
    (void)disk->Close();
  }

  /// Starts a command whose buffer is scattered over both of the memory's regions.
  std::shared_ptr<Outcome> Begin(const Bytes& cdb, bool data_in, const Bytes& data) {
    auto flight = std::make_unique<Flight>();
    flight->command.cdb_length = static_cast<uint8_t>(cdb.size());
    std::copy(cdb.begin(), cdb.end(), flight->command.cdb.begin());
    flight->command.data_in = data_in;
    flight->command.completion = this;
    for (size_t at = 0; at < data.size(); at += 1000) {
      const size_t bytes = std::min<size_t>(1000, data.size() - at);
      const uint64_t gpa = at / 1000 % 2 == 0 ? next_low_ : kHighGpa + next_low_;
      next_low_ = (next_low_ + 1024) % (kLowBytes - 1024);
      EXPECT_TRUE(memory->Write(gpa, &data[at], bytes));
      EXPECT_TRUE(flight->command.data.AppendRange(*memory, gpa, bytes));
      flight->pieces.push_back({gpa, bytes});
    }
    auto outcome = flight->outcome;
    ScsiCommand& command = flight->command;
    flights_.push_back(std::move(flight));
    unit->Execute(command, queue.get(), disk.get());
    queue->Kick();
    return outcome;
  }
  Outcome Await(const std::shared_ptr<Outcome>& outcome, int milliseconds = 5000) {
    for (int i = 0; i < milliseconds && !outcome->ended; ++i) loop->RunOnce(1);
    EXPECT_TRUE(outcome->ended || milliseconds < 5000);
    return *outcome;
  }
  Outcome In(const Bytes& cdb, size_t room) { return Await(Begin(cdb, true, Bytes(room, 0xee))); }
  Outcome Out(const Bytes& cdb, const Bytes& data = {}) { return Await(Begin(cdb, false, data)); }

  static Bytes Cdb10(uint8_t opcode, uint32_t lba, uint16_t blocks) {
    Bytes cdb(10);
    cdb[0] = opcode;
    scsi::PutBe<uint32_t>(cdb, 2, lba);
    scsi::PutBe<uint16_t>(cdb, 7, blocks);
    return cdb;
  }
  Outcome Read(uint32_t lba, uint16_t blocks) {
    return In(Cdb10(0x28, lba, blocks), size_t{blocks} * 512);
  }
  Outcome Write(uint32_t lba, const Bytes& data) {
    return Out(Cdb10(0x2a, lba, static_cast<uint16_t>(data.size() / 512)), data);
  }
  Outcome Flush() { return Out(Cdb10(0x35, 0, 0)); }
  Outcome Ready() { return Out({0, 0, 0, 0, 0, 0}); }

  using Action = PersistentReservations::Out;
  static Bytes ReserveOut(Action action, uint8_t type) {
    Bytes cdb = Cdb10(0x5f, 0, 0);
    cdb[1] = static_cast<uint8_t>(action);
    cdb[2] = type;
    cdb[8] = 24;
    return cdb;
  }
  static Bytes Keys(uint64_t key, uint64_t action_key, bool persist) {
    Bytes list(24);
    scsi::PutBe<uint64_t>(list, 0, key);
    scsi::PutBe<uint64_t>(list, 8, action_key);
    list[20] = persist ? 1 : 0;
    return list;
  }
  Outcome Reserve(Action action, uint8_t type, uint64_t key, uint64_t action_key = 0,
                  bool persist = false) {
    return Out(ReserveOut(action, type), Keys(key, action_key, persist));
  }
  Outcome Register(uint64_t key, bool persist = false) {
    return Reserve(Action::kRegisterAndIgnore, 0, 0, key, persist);
  }
  /// What READ KEYS says.
  std::vector<uint64_t> ReadKeys() {
    Bytes cdb = Cdb10(0x5e, 0, 512);
    const Outcome outcome = In(cdb, 512);
    EXPECT_TRUE(outcome.good());
    std::vector<uint64_t> keys;
    for (uint32_t at = 8; at < 8 + scsi::GetBe<uint32_t>(outcome.data, 4); at += 8)
      keys.push_back(scsi::GetBe<uint64_t>(outcome.data, at));
    return keys;
  }

  std::unique_ptr<vmm::Loop> loop = *vmm::Loop::Create();
  std::unique_ptr<vmm::GuestMemory> memory = NewMemory();
  std::shared_ptr<RemoteDisk> disk;
  std::shared_ptr<RemoteScsiDisk> unit;
  std::unique_ptr<DiskQueue> queue;

 private:
  struct Flight {
    ScsiCommand command;
    std::vector<std::pair<uint64_t, size_t>> pieces;
    std::shared_ptr<Outcome> outcome = std::make_shared<Outcome>();
  };

  void OnScsiComplete(ScsiCommand& command) override {
    const auto at = std::find_if(flights_.begin(), flights_.end(),
                                 [&](const auto& flight) { return &flight->command == &command; });
    ASSERT_NE(at, flights_.end());
    Outcome& outcome = *(*at)->outcome;
    outcome.ended = true;
    outcome.status = command.status;
    outcome.sense = command.sense;
    outcome.moved = command.bytes_moved;
    for (const auto& [gpa, bytes] : (*at)->pieces) {
      Bytes piece(bytes);
      EXPECT_TRUE(memory->Read(gpa, piece.data(), bytes));
      outcome.data.insert(outcome.data.end(), piece.begin(), piece.end());
    }
    done_.push_back(std::move(*at));  // Run still looks at it
    flights_.erase(at);
    if (done_.size() > 8) done_.erase(done_.begin());
  }

  std::vector<std::unique_ptr<Flight>> flights_;
  std::vector<std::unique_ptr<Flight>> done_;
  uint64_t next_low_ = 300;
};

class SharedDiskTest : public ::testing::Test {
 protected:
  SharedDiskTest() {
    char name[] = "/tmp/kvmbus-shared-XXXXXX";
    folder_ = ::mkdtemp(name);
    socket_ = folder_ + "/owner.sock";
    StartOwner();
  }
  ~SharedDiskTest() override {
    StopOwner();
    ::unlink(socket_.c_str());
    ::rmdir(folder_.c_str());
  }

  void StartOwner() {
    reservations_ = std::make_shared<PersistentReservations>([this](const std::string& state) {
      stored_ = state;
      return true;
    });
    if (!stored_.empty()) {
      ASSERT_TRUE(reservations_->RestorePersistent(stored_).ok());
    }
    DiskOwner::Options options;
    options.socket_path = socket_;
    options.disk = fake_;
    options.reservations = reservations_;
    options.first_wait_ns = options.idle_ns = 1'000'000;
    options.on_idle = [this] { idle_ = true; };
    options.grow = [this](uint64_t size_bytes, const DiskOwner::Done& done) {
      if (size_bytes <= fake_->info().size_bytes)
        return done(vmm::Error(vmm::Code::kInvalidArgument, "smaller"));
      fake_->Resize(size_bytes);
      done({});
    };
    main_->loop().PostAndWait([&] {
      std::vector<vmm::Loop*> loops = {&io0_->loop()};
      if (two_loops_) loops.push_back(&io1_->loop());
      auto owner = DiskOwner::Listen(std::move(options), main_->loop(), loops);
      ASSERT_TRUE(owner.ok()) << owner.error().ToString();
      owner_ = std::move(*owner);
    });
  }
  void StopOwner() {
    main_->loop().PostAndWait([&] { owner_.reset(); });
  }
  uint64_t CountOf(std::string_view name) {
    uint64_t value = 0;
    main_->loop().PostAndWait([&] {
      owner_->VisitCounters([&](std::string_view visited, const vmm::Counter& counter) {
        if (visited == name) value = counter.value();
      });
    });
    return value;
  }
  /// Completes what the fake disk holds, on its queues' thread.
  void Release() {
    io0_->loop().PostAndWait([&] { fake_->Release(); });
  }
  template <typename Condition>
  static bool Eventually(Condition condition) {
    for (int i = 0; i < 5000; ++i) {
      if (condition()) return true;
      ::usleep(1000);
    }
    return false;
  }
  static Bytes Pattern(size_t bytes, uint8_t seed) {
    Bytes pattern(bytes);
    for (size_t i = 0; i < bytes; ++i) pattern[i] = static_cast<uint8_t>(seed + i * 3 + (i >> 9));
    return pattern;
  }

  std::string folder_, socket_, stored_;
  std::atomic<bool> idle_{false};
  bool two_loops_ = false;
  std::shared_ptr<tests::FakeDisk> fake_ =
      std::make_shared<tests::FakeDisk>(tests::FakeDisk::DefaultInfo(kDiskBytes));
  std::shared_ptr<PersistentReservations> reservations_;
  std::unique_ptr<vmm::LoopThread> main_ = *vmm::LoopThread::Start("owner");
  std::unique_ptr<vmm::LoopThread> io0_ = *vmm::LoopThread::Start("owner-io/0");
  std::unique_ptr<vmm::LoopThread> io1_ = *vmm::LoopThread::Start("owner-io/1");
  std::unique_ptr<DiskOwner> owner_;
};

}  // namespace kvmbus::virtdev::shared_disk_test
