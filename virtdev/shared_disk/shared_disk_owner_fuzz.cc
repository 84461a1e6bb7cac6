// SPDX-License-Identifier: Apache-2.0
// Hostile clients of a shared disk's owner: hellos, requests, doorbells and a ring's memory of
// their choice. The owner never falls, never touches what is not the client's memory (the sanitizer
// watches) or not on the disk (the fake disk asserts it), and serves an honest client afterwards.
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "tests/fakes/fake_disk.h"
#include "tests/fuzz/fuzz_input.h"
#include "virtdev/shared_disk/disk_owner.h"
#include "vmm/os/log.h"
#include "vmm/os/unix_socket.h"

namespace {

using namespace kvmbus;           // NOLINT: a fuzz target is a program
using namespace kvmbus::virtdev;  // NOLINT
using Input = tests::FuzzInput;

constexpr uint64_t kRamBytes = 64 << 10;

/// The client's side, which keeps to no rule.
class Attack {
 public:
  Attack(const std::string& path, vmm::Loop& loop) : path_(path), loop_(loop) {
    const vmm::MemoryRange ranges[] = {{0, kRamBytes}};
    memory_ = *vmm::GuestMemory::Create(ranges);
    ring_ = *DiskRing::Create();
    struct stat status = {};
    KVMBUS_ASSERT(::fstat(ring_->fd(), &status) == 0);
    ring_bytes_ = static_cast<size_t>(status.st_size);
    void* mapped = ::mmap(nullptr, ring_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, ring_->fd(), 0);
    KVMBUS_ASSERT(mapped != MAP_FAILED);
    raw_ring_ = static_cast<uint8_t*>(mapped);
  }
  ~Attack() { ::munmap(raw_ring_, ring_bytes_); }

  void Step(Input& input) {
    switch (input.Byte() % 8) {
      case 0:
        return Greet(shared_disk::Kind::kClient, input, memory_->fd());
      case 1:
        return Greet(shared_disk::Kind::kQueue, input, ring_->fd());
      case 2:
        return Greet(static_cast<shared_disk::Kind>(input.Byte()), input, -1);
      case 3:
        return Send(input.Byte(), input.Bytes(input.Byte()));
      case 4:
        return Poke(input);
      case 5:
        return Submit(input);
      case 6:
        if (!sockets_.empty()) sockets_.erase(sockets_.begin() + input.Byte() % sockets_.size());
        break;
      default:
        break;
    }
    Turn();
  }
  void Turn() {
    for (int i = 0; i < 4; ++i) loop_.RunOnce(0);
    for (const vmm::Fd& socket : sockets_) {
      shared_disk::HelloReply reply;
      const auto got = vmm::ReceiveSome(socket.get(), shared_disk::BytesOf(reply));
      if (got.ok() && *got == sizeof(reply) && reply.token != 0) token_ = reply.token;
    }
  }

 private:
  void Greet(shared_disk::Kind kind, Input& input, int fd) {
    if (sockets_.size() > 16) return;
    auto socket = vmm::ConnectUnix(path_);
    if (!socket.ok()) return;
    shared_disk::Hello hello;
    hello.kind = kind;
    hello.initiator[0] = static_cast<uint8_t>(input.Byte() % 3);
    hello.token = token_;
    hello.ranges = 1;
    hello.range[0] = {0, kRamBytes};
    for (uint8_t changes = input.Byte() % 4; changes > 0; --changes)
      shared_disk::BytesOf(hello)[input.Word() % sizeof(hello)] = input.Byte();
    const int fds[] = {fd, fd};
    const size_t count = fd < 0 ? 0 : 1 + (input.Byte() == 255 ? 1 : 0);
    (void)vmm::SendFrame(socket->get(), shared_disk::BytesOf(hello), std::span(fds).first(count));
    sockets_.push_back(std::move(*socket));
    Turn();
  }
  void Send(uint8_t which, const std::vector<uint8_t>& bytes) {
    if (sockets_.empty() || bytes.empty()) return;
    (void)vmm::SendFrame(sockets_[which % sockets_.size()].get(), bytes);
  }
  void Poke(Input& input) {
    const size_t offset = (size_t{input.Word()} << 8 | input.Byte()) % ring_bytes_;
    const auto bytes = input.Bytes(1 + input.Byte() % 64);
    std::copy_n(bytes.begin(), std::min(bytes.size(), ring_bytes_ - offset), raw_ring_ + offset);
  }
  /// A command of almost the right form.
  void Submit(Input& input) {
    DiskRing::Command command = {};
    command.data_in = input.Byte() % 2;
    command.cdb_length = static_cast<uint8_t>(input.Byte() % 18);
    const auto cdb = input.Bytes(16);
    std::copy(cdb.begin(), cdb.end(), command.cdb.begin());
    GuestBuffer data;
    for (uint8_t pieces = input.Byte() % 4; pieces > 0; --pieces)
      (void)data.AppendRange(*memory_, input.Word(), input.Word() % 8192);
    const uint32_t slot = input.Byte();
    (void)ring_->PutCommand(slot, command, data);
    ring_->Push(slot);
    if (input.Byte() % 4 == 0) ring_->Interrupt();
    (void)ring_->Publish();
    for (size_t i = 0; i < sockets_.size(); ++i) Send(static_cast<uint8_t>(i), {0});
  }

  const std::string path_;
  vmm::Loop& loop_;
  std::unique_ptr<vmm::GuestMemory> memory_;
  std::unique_ptr<DiskRing> ring_;
  size_t ring_bytes_ = 0;
  uint8_t* raw_ring_ = nullptr;
  std::vector<vmm::Fd> sockets_;
  uint64_t token_ = 0;
};

std::string SocketPath() {
  char name[] = "/tmp/kvmbus-fuzz-XXXXXX";
  KVMBUS_ASSERT(::mkdtemp(name) != nullptr);
  static std::string folder;
  folder = name;
  std::atexit([] {
    ::unlink((folder + "/owner.sock").c_str());
    ::rmdir(folder.c_str());
  });
  return folder + "/owner.sock";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static const std::unique_ptr<vmm::Loop> loop = *vmm::Loop::Create();
  static const std::string path = SocketPath();
  spdlog::set_level(spdlog::level::off);
  Input input(bytes, size);
  const uint8_t shape = input.Byte();
  auto fake = std::make_shared<tests::FakeDisk>(tests::FakeDisk::DefaultInfo(32 << 10));
  fake->set_timing((shape & 1) != 0 ? tests::FakeDisk::Timing::kPosted
                                    : tests::FakeDisk::Timing::kInline);
  DiskOwner::Options options;
  options.socket_path = path;
  options.disk = fake;
  options.reservations =
      std::make_shared<PersistentReservations>([](const std::string&) { return true; });
  options.grow = [fake](uint64_t bytes, const DiskOwner::Done& done) {
    const bool sound = bytes > fake->info().size_bytes && bytes <= 64 << 10 && bytes % 512 == 0;
    if (!sound) return done(vmm::Error(vmm::Code::kInvalidArgument, std::string(300, 'x')));
    fake->Resize(bytes);
    done({});
  };
  auto owner = *DiskOwner::Listen(std::move(options), *loop, {loop.get()});
  {
    Attack attack(path, *loop);
    while (!input.empty()) attack.Step(input);
    attack.Turn();
  }
  const vmm::Fd honest = *vmm::ConnectUnix(path);
  const shared_disk::Hello hello;
  KVMBUS_ASSERT(vmm::SendFrame(honest.get(), shared_disk::BytesOf(hello)).ok());
  shared_disk::HelloReply reply;
  size_t got = 0;
  for (int i = 0; i < 1000 && got == 0; ++i) {
    loop->RunOnce(0);
    got = *vmm::ReceiveSome(honest.get(), shared_disk::BytesOf(reply));
  }
  KVMBUS_ASSERT(got == sizeof(reply) && reply.code == 0);
  owner.reset();
  for (int i = 0; i < 4; ++i) loop->RunOnce(0);
  KVMBUS_ASSERT(fake->open_queues() == 0);
  return 0;
}
