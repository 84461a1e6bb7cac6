// SPDX-License-Identifier: Apache-2.0
// Clients and owners that write nonsense: each is thrown out, counted, and hurts nobody else.
#include <fcntl.h>
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "virtdev/shared_disk/shared_disk_test.h"
#include "vmm/os/unix_socket.h"

namespace kvmbus::virtdev::shared_disk_test {
namespace {

using shared_disk::BytesOf;
using shared_disk::Hello;
using shared_disk::HelloReply;
using shared_disk::Kind;
using vmm::Code;

class HostilePeer : public SharedDiskTest {
 protected:
  static Hello ClientHello(uint8_t number = 9) {
    Hello hello;
    hello.kind = Kind::kClient;
    hello.initiator[0] = number;
    hello.ranges = 2;
    hello.range[0] = {0, kLowBytes};
    hello.range[1] = {kHighGpa, kHighBytes};
    return hello;
  }
  /// The code of the owner's answer, or 1000: it hung up.
  uint32_t Say(const Hello& hello, std::vector<int> fds, vmm::Fd* socket = nullptr,
               HelloReply* answer = nullptr) {
    vmm::Fd own = *vmm::ConnectUnix(socket_);
    HelloReply reply;
    EXPECT_TRUE(vmm::SendFrame(own.get(), BytesOf(hello), fds).ok());
    if (!vmm::ReceiveFrame(own.get(), BytesOf(reply), 5000).ok()) return 1000;
    if (socket != nullptr) *socket = std::move(own);
    if (answer != nullptr) *answer = reply;
    return reply.code;
  }
  static bool HungUp(const vmm::Fd& socket) {
    uint8_t byte;
    return Eventually([&] { return !vmm::ReceiveSome(socket.get(), {&byte, 1}).ok(); });
  }
  const std::unique_ptr<vmm::GuestMemory> memory_ = NewMemory();
  static constexpr auto kInvalid = static_cast<uint32_t>(Code::kInvalidArgument);
};

TEST_F(HostilePeer, HellosAreChecked) {
  Hello hello = ClientHello();
  hello.magic = 1;
  EXPECT_EQ(Say(hello, {}), 1000u);
  hello = ClientHello();
  hello.version = 77;
  EXPECT_EQ(Say(hello, {}), static_cast<uint32_t>(Code::kFailedPrecondition));
  hello = ClientHello();
  hello.kind = static_cast<Kind>(99);
  EXPECT_EQ(Say(hello, {}), 1000u);
  EXPECT_EQ(Say(ClientHello(), {}), kInvalid) << "no memory";
  hello = ClientHello();
  hello.ranges = 1000;
  EXPECT_EQ(Say(hello, {memory_->fd()}), kInvalid);
  hello = ClientHello();
  hello.range[1].gpa = 4096;
  EXPECT_EQ(Say(hello, {memory_->fd()}), kInvalid) << "they overlap";
  hello = ClientHello();
  hello.range[1].size = ~uint64_t{0} - 4095;
  EXPECT_EQ(Say(hello, {memory_->fd()}), kInvalid) << "they wrap";
  hello = ClientHello();
  hello.range[1].size += 4096;
  EXPECT_EQ(Say(hello, {memory_->fd()}), kInvalid) << "more than the file";
  const vmm::Fd loose(::memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(loose.get(), kLowBytes + kHighBytes), 0);
  EXPECT_EQ(Say(ClientHello(), {loose.get()}), kInvalid) << "it may shrink";
  const vmm::Fd null(::open("/dev/zero", O_RDWR | O_CLOEXEC));
  EXPECT_EQ(Say(ClientHello(), {null.get()}), kInvalid);
  EXPECT_EQ(Say(ClientHello(), {null.get(), memory_->fd()}), kInvalid) << "the first counts";
  EXPECT_EQ(CountOf("shared_disk_broken_peers"), 2u);
  EXPECT_EQ(CountOf("shared_disk_refused_peers"), 9u);
  Node a(socket_, 1);
  EXPECT_TRUE(a.Ready().good());
}

TEST_F(HostilePeer, QueuesNeedTheirClientAndARing) {
  vmm::Fd control;
  HelloReply reply;
  ASSERT_EQ(Say(ClientHello(), {memory_->fd()}, &control, &reply), 0u);
  const auto ring = *DiskRing::Create();
  Hello hello;
  hello.kind = Kind::kQueue;
  EXPECT_EQ(Say(hello, {ring->fd()}), static_cast<uint32_t>(Code::kNotFound)) << "token 0";
  hello.token = reply.token ^ 1;
  EXPECT_EQ(Say(hello, {ring->fd()}), static_cast<uint32_t>(Code::kNotFound));
  hello.token = reply.token;
  EXPECT_EQ(Say(hello, {}), kInvalid);
  EXPECT_EQ(Say(hello, {memory_->fd()}), kInvalid) << "no ring";
  EXPECT_EQ(Say(hello, {ring->fd()}), 0u);
  shared_disk::Request request;
  request.call = static_cast<shared_disk::Call>(99);
  ASSERT_TRUE(vmm::SendFrame(control.get(), BytesOf(request)).ok());
  EXPECT_TRUE(HungUp(control));
  EXPECT_TRUE(Eventually([&] { return fake_->open_queues() == 0; }));
}

TEST_F(HostilePeer, ACrowdIsTurnedAway) {
  std::vector<vmm::Fd> crowd;
  for (size_t i = 0; i <= DiskOwner::kMaxPeers; ++i) {
    auto one = vmm::ConnectUnix(socket_);
    while (!one.ok()) {  // more than the kernel lets wait
      ::usleep(100);
      one = vmm::ConnectUnix(socket_);
    }
    crowd.push_back(std::move(*one));
  }
  EXPECT_TRUE(HungUp(crowd.back()));
  EXPECT_GE(CountOf("shared_disk_refused_peers"), 1u);
}

/// A client with a ring, whose commands are not a machine's.
class HostileRing : public HostilePeer {
 protected:
  void Open() {
    ring_ = *DiskRing::Create();
    ASSERT_EQ(Say(ClientHello(next_), {memory_->fd()}, &control_, &reply_), 0u);
    ++next_;
    Hello hello;
    hello.kind = Kind::kQueue;
    hello.token = reply_.token;
    ASSERT_EQ(Say(hello, {ring_->fd()}, &queue_), 0u);
  }
  void Submit(uint32_t slot) {
    ring_->Push(slot);
    (void)ring_->Publish();
    const uint8_t doorbell = 0;
    (void)vmm::SendFrame(queue_.get(), {&doorbell, 1});
  }
  DiskRing::Command TestUnitReady() const { return {{}, 6, 0, 0}; }
  /// Writes into the ring's file past its interface.
  void Poke(size_t offset, uint64_t value) {
    ASSERT_EQ(::pwrite(ring_->fd(), &value, sizeof(value), static_cast<off_t>(offset)),
              static_cast<ssize_t>(sizeof(value)));
  }
  void ExpectThrownOut(const char* why) {
    EXPECT_TRUE(HungUp(queue_)) << why;
    ++thrown_out_;
    EXPECT_EQ(CountOf("shared_disk_broken_peers"), thrown_out_) << why;
    control_.Reset();
    Node a(socket_, 1);
    EXPECT_TRUE(a.Ready().good()) << why;
  }

  std::unique_ptr<DiskRing> ring_;
  vmm::Fd control_, queue_;
  HelloReply reply_;
  uint8_t next_ = 20;
  uint64_t thrown_out_ = 0;
};

TEST_F(HostileRing, CommandsAreChecked) {
  const auto wide = *vmm::GuestMemory::Create(std::vector<vmm::MemoryRange>{{0, 64 << 20}});
  const auto attempt = [&](const char* why, uint64_t gpa, uint64_t bytes) {
    Open();
    GuestBuffer data;
    ASSERT_TRUE(data.AppendRange(*wide, gpa, bytes));
    ASSERT_TRUE(ring_->PutCommand(0, TestUnitReady(), data));
    Submit(0);
    ExpectThrownOut(why);
  };
  attempt("beyond the memory", 2 * kLowBytes, 4096);
  attempt("over the end of a region", kLowBytes - 512, 1024);
  attempt("more than a transfer", 0, OwnerQueue::kMaxTransferBytes + 512);
  Open();
  DiskRing::Command command = TestUnitReady();
  command.cdb_length = 200;
  ASSERT_TRUE(ring_->PutCommand(3, command, {}));
  Submit(3);
  ExpectThrownOut("a command block longer than there are");
  Open();
  Submit(DiskRing::kSlots);
  ExpectThrownOut("a slot that is none");
  Open();
  fake_->set_timing(Timing::kHeld);
  GuestBuffer data;
  ASSERT_TRUE(data.AppendRange(*wide, 0, 512));
  ASSERT_TRUE(ring_->PutCommand(3, {{0x28, 0, 0, 0, 0, 0, 0, 0, 1}, 10, 1, 0}, data));
  Submit(3);
  Submit(3);
  ASSERT_TRUE(Eventually([&] { return fake_->held() >= 1; }));  // perhaps a former one's flush
  fake_->set_timing(Timing::kInline);
  ASSERT_TRUE(Eventually([&] {
    Release();
    return fake_->open_queues() == 0;
  }));
  ExpectThrownOut("a slot twice");
}

TEST_F(HostileRing, TheRingItselfIsChecked) {
  Open();
  Poke(0, 0x7fffffff);  // the first word is the submitted tail
  const uint8_t doorbell = 0;
  ASSERT_TRUE(vmm::SendFrame(queue_.get(), {&doorbell, 1}).ok());
  ExpectThrownOut("more than a ring full");
}

TEST_F(HostileRing, DoorbellsWithoutEndChangeNothing) {
  Open();
  const std::vector<uint8_t> doorbells(4096, 7);
  for (int i = 0; i < 100; ++i) (void)vmm::SendFrame(queue_.get(), doorbells);
  Node a(socket_, 1);
  EXPECT_TRUE(a.Ready().good());
  ASSERT_TRUE(ring_->PutCommand(0, TestUnitReady(), {}));
  Submit(0);
  uint32_t slot = 99;
  EXPECT_TRUE(Eventually([&] { return ring_->Pop(&slot) == DiskRing::Popped::kSlot; }));
  EXPECT_EQ(slot, 0u);
}

/// An owner of our own, which has a client and its rings in its hands.
class HostileOwner : public HostilePeer {
 protected:
  HostileOwner() {
    StopOwner();
    listener_ = *vmm::ListenUnix(socket_);
    reply_.token = 5;
    reply_.owner = 1;
    reply_.size_bytes = kDiskBytes;
    reply_.logical_sector_bytes = reply_.physical_sector_bytes = 512;
  }
  ~HostileOwner() override {
    sockets_.clear();
    listener_.Reset();
    StartOwner();
  }

  /// The next connection: what came with its hello.
  std::vector<vmm::Fd> Accept(bool answers = true) {
    vmm::Fd socket;
    EXPECT_TRUE(Eventually([&] { return (socket = vmm::AcceptUnix(listener_.get())).valid(); }));
    Hello hello;
    std::vector<vmm::Fd> fds;
    size_t had = 0;
    while (had < sizeof(hello)) {
      const auto got =
          vmm::ReceiveSome(socket.get(), BytesOf(hello).subspan(had), &fds, vmm::kMaxSentFds);
      if (!got.ok()) break;
      had += *got;
    }
    sockets_.push_back(std::move(socket));
    if (answers) {
      EXPECT_TRUE(vmm::SendFrame(sockets_.back().get(), BytesOf(reply_)).ok());
    }
    return fds;
  }
  void Connect(uint64_t patience_ns = 30'000'000'000, int answer_ms = 5000) {
    std::thread owner([&] { (void)Accept(); });
    RemoteDisk::Options options;
    options.socket_path = socket_;
    options.initiator = Id(1);
    options.retry_ns = 1'000'000;
    options.patience_ns = patience_ns;
    options.answer_ms = answer_ms;
    auto connected = RemoteDisk::Connect(options, *memory_, *loop_);
    owner.join();
    ASSERT_TRUE(connected.ok());
    disk_ = *connected;
  }

  std::unique_ptr<vmm::Loop> loop_ = *vmm::Loop::Create();
  vmm::Fd listener_;
  HelloReply reply_;
  std::vector<vmm::Fd> sockets_;  ///< the client's, then its queues'
  std::shared_ptr<RemoteDisk> disk_;
};

/// Events without pause, from a thread of their own, for two seconds at most.
class Flood {
 public:
  explicit Flood(int socket) : thread_([this, socket] { Send(socket); }) {}
  ~Flood() {
    over_ = true;
    thread_.join();
  }

 private:
  void Send(int socket) {
    shared_disk::Reply event;
    event.call = shared_disk::Call::kResized;
    event.size_bytes = kDiskBytes;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
    while (!over_ && std::chrono::steady_clock::now() < end)
      (void)vmm::SendFrame(socket, BytesOf(event));
  }
  std::atomic<bool> over_{false};
  std::thread thread_;
};

class Ended final : public ScsiCompletion {
 public:
  void OnScsiComplete(ScsiCommand&) override { ended = true; }
  bool ended = false;
};

TEST_F(HostileOwner, WhoAnswersNonsenseIsLeft) {
  Connect();
  auto queue = *disk_->OpenQueue(*loop_);
  std::vector<vmm::Fd> fds = Accept();
  ASSERT_EQ(fds.size(), 1u);
  auto ring = *DiskRing::Adopt(std::move(fds.front()));
  Ended completion;
  ScsiCommand command;
  command.cdb = {0x28, 0, 0, 0, 0, 0, 0, 0, 1};
  command.cdb_length = 10;
  command.data_in = true;
  command.completion = &completion;
  ASSERT_TRUE(command.data.AppendRange(*memory_, 0, 512));
  RemoteScsiDisk unit(disk_);
  for (int i = 0; i < 20; ++i) loop_->RunOnce(1);
  unit.Execute(command, queue.get(), disk_.get());
  queue->Kick();
  uint32_t slot;
  ASSERT_TRUE(Eventually([&] { return ring->Pop(&slot) == DiskRing::Popped::kSlot; }));
  ring->PutOutcome(slot, {4096, 0, 0, 0, 0, 0});  // more than the buffer
  ring->Push(slot);
  (void)ring->Publish();
  const uint8_t doorbell = 0;
  ASSERT_TRUE(vmm::SendFrame(sockets_.back().get(), {&doorbell, 1}).ok());
  uint64_t bad = 0;
  EXPECT_TRUE(Eventually([&] {
    loop_->RunOnce(1);
    disk_->VisitCounters([&](std::string_view name, const vmm::Counter& counter) {
      if (name == "shared_disk_bad_outcomes") bad = counter.value();
    });
    return bad == 1;
  }));
  EXPECT_FALSE(completion.ended) << "nobody knows what became of it";
  sockets_.clear();
  queue->Drain();
  EXPECT_TRUE(completion.ended);
  EXPECT_EQ(command.status, scsi::Status::kBusy);
  queue.reset();
}

TEST_F(HostileOwner, EventsWithoutEndDoNotKeepTheLoop) {
  Connect();
  unsigned events = 0;
  disk_->SetResizeListener([&] { ++events; });
  shared_disk::Reply event;
  event.call = shared_disk::Call::kResized;
  event.size_bytes = kDiskBytes;
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(vmm::SendFrame(sockets_[0].get(), BytesOf(event)).ok());
  }
  loop_->RunOnce(0);
  EXPECT_LT(events, 100u) << "others of the loop have their turn";
  EXPECT_GT(events, 0u);
  for (int i = 0; i < 100; ++i) loop_->RunOnce(0);
  EXPECT_EQ(events, 100u) << "none is lost";
}

TEST_F(HostileOwner, EventsWithoutEndAreNoAnswer) {
  Connect(30'000'000'000, 100);
  const Flood flood(sockets_[0].get());
  const auto begin = std::chrono::steady_clock::now();
  shared_disk::Request request;
  request.call = shared_disk::Call::kReset;
  EXPECT_EQ(disk_->Call(request).error().code(), Code::kDeadlineExceeded);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
  EXPECT_NE(disk_->link().state, RemoteDisk::Link::State::kUp);
}

TEST_F(HostileOwner, WhoNeverAnswersAQueueIsNotWaitedForWithoutEnd) {
  Connect(200'000'000);
  auto queue = *disk_->OpenQueue(*loop_);
  (void)Accept(false);
  Ended completion;
  ScsiCommand command;
  command.cdb_length = 6;
  command.completion = &completion;
  RemoteScsiDisk unit(disk_);
  unit.Execute(command, queue.get(), disk_.get());
  queue->Kick();
  loop_->RunOnce(1);
  EXPECT_FALSE(completion.ended);
  EXPECT_TRUE(Eventually([&] {
    loop_->RunOnce(1);
    return completion.ended;
  }));
  EXPECT_EQ(command.sense, scsi::kInternalTargetFailure);
}

}  // namespace
}  // namespace kvmbus::virtdev::shared_disk_test
