// SPDX-License-Identifier: Apache-2.0
// Hostile peers on the control socket between vmmd and vmm: a stream of frames and of what are
// none, cut into pieces anywhere. However it is cut, the same frames come of it; the worker's
// server dispatches those that are requests, up to the first that is not, and serves an honest
// client afterwards; vmmd's link answers each of its calls once.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cmd/vmm/control_server.h"
#include "cmd/vmm/worker_reply.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/hostile_state.h"
#include "vmm/config/disk_qos.h"
#include "vmm/config/limits.h"
#include "vmm/event/frame_reader.h"
#include "vmm/manager/worker_link.h"
#include "vmm/os/log.h"
#include "vmm/os/unix_socket.h"

namespace {

using namespace kvmbus;  // NOLINT: a fuzz target is a program
using Input = tests::FuzzInput;

/// What a peer sends, and where it is cut.
struct Stream {
  std::string bytes;
  std::vector<size_t> pieces;  ///< each so long

  explicit Stream(Input& input) {
    while (!input.empty()) {
      const uint8_t kind = input.Byte();
      std::string part = tests::TakeString(input, input.Byte());
      // Half of the parts are whole frames: a right length is hard to guess.
      if (kind % 2 == 0) part.insert(0, HeaderOf(part.size()));
      const size_t cut = kind / 2 % 64;
      if (cut != 0 && cut < part.size()) {
        pieces.push_back(cut);
        pieces.push_back(part.size() - cut);
      } else if (kind < 128 || pieces.empty()) {
        pieces.push_back(part.size());
      } else {
        pieces.back() += part.size();  // together with what was before it
      }
      bytes += part;
    }
  }
  static std::string HeaderOf(size_t frame_bytes) {
    const auto header = vmm::FrameHeader(static_cast<uint32_t>(frame_bytes));
    return {header.begin(), header.end()};
  }
};

/// A stream's frames, and whether one that is too long ends them.
struct Frames {
  std::vector<std::string> whole;
  bool refused = false;
  bool operator==(const Frames&) const = default;
};

/// The plainest way: with the whole stream at hand.
Frames Cut(std::string_view stream, uint32_t limit) {
  Frames frames;
  while (stream.size() >= vmm::kFrameHeaderBytes) {
    uint32_t length;
    std::memcpy(&length, stream.data(), sizeof(length));
    frames.refused = length > limit;
    stream.remove_prefix(vmm::kFrameHeaderBytes);
    if (frames.refused || length > stream.size()) break;
    frames.whole.emplace_back(stream.substr(0, length));
    stream.remove_prefix(length);
  }
  return frames;
}

void CheckReader(const Stream& stream, uint32_t limit) {
  Frames frames;
  vmm::FrameReader reader(limit);
  std::string_view rest = stream.bytes;
  for (const size_t piece : stream.pieces) {
    reader.Append(rest.substr(0, piece));
    rest.remove_prefix(piece);
    for (;;) {
      const auto frame = reader.Next();
      if (frame.ok() && !*frame) break;
      frames.refused = !frame.ok();
      if (frames.refused) break;
      frames.whole.push_back(**frame);
    }
    if (frames.refused) break;
    KVMBUS_ASSERT(reader.pending_bytes() < vmm::kFrameHeaderBytes + limit);
  }
  KVMBUS_ASSERT(!frames.refused || !reader.Next().ok());
  KVMBUS_ASSERT(frames == Cut(stream.bytes, limit));
}

/// Non-blocking; what there is no room for is lost, and a peer that went is no surprise.
void Send(int socket, std::string_view bytes) {
  (void)!::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
}

void SendPieces(const Stream& stream, int socket, vmm::Loop& loop) {
  std::string_view rest = stream.bytes;
  for (const size_t piece : stream.pieces) {
    Send(socket, rest.substr(0, piece));
    rest.remove_prefix(piece);
    loop.RunOnce(0);
  }
  for (int i = 0; i < 4; ++i) loop.RunOnce(0);
}

/// The worker's checks of requests that need no machine.
class Dispatcher {
 public:
  void Answer(const worker::Request& request, cmd::ControlServer::ReplyFunction reply) {
    seen.push_back(request.SerializeAsString());
    if (request.id() % 4 == 3) return late_.push_back(std::move(reply));
    switch (request.call_case()) {
      case worker::Request::kHello: {
        worker::Reply answer;
        *answer.mutable_hello()->mutable_config() = vm_;
        return reply(std::move(answer));
      }
      case worker::Request::kAttachDisk: {
        const config::Disk& disk = request.attach_disk().disk();
        const auto valid = vmm::ValidateDisk(vm_, disk);
        if (valid.ok() && vm_.disks_size() < 8) *vm_.add_disks() = disk;
        return reply(cmd::FromResult(valid));
      }
      case worker::Request::kSetDiskQos: {
        config::Disk disk;
        vmm::ChangeDiskQos(request.set_disk_qos().change(), disk.mutable_qos());
        return reply(cmd::FromResult(vmm::ValidateDiskQos(vm_, disk)));
      }
      default:
        return reply({});
    }
  }
  /// To clients that may have left.
  void AnswerLate() {
    for (const auto& reply : late_) reply({});
    late_.clear();
  }

  std::vector<std::string> seen;

 private:
  config::Vm vm_ = [] {
    config::Vm vm;
    vmm::ApplyDefaults(&vm);
    return vm;
  }();
  std::vector<cmd::ControlServer::ReplyFunction> late_;
};

std::vector<std::string> RequestsOf(const Stream& stream) {
  std::vector<std::string> requests;
  for (const std::string& frame : Cut(stream.bytes, cmd::ControlServer::kFrameLimit).whole) {
    worker::Message message;
    if (!message.ParseFromString(frame) || !message.has_request()) break;
    requests.push_back(message.request().SerializeAsString());
  }
  return requests;
}

void AttackServer(const Stream& stream, const std::string& path, vmm::Loop& loop) {
  Dispatcher dispatcher;
  auto server = *cmd::ControlServer::Listen(
      loop, path, [&](const worker::Request& request, cmd::ControlServer::ReplyFunction reply) {
        dispatcher.Answer(request, std::move(reply));
      });
  {
    const vmm::Fd hostile = *vmm::ConnectUnix(path);
    loop.RunOnce(0);
    SendPieces(stream, hostile.get(), loop);
    KVMBUS_ASSERT(dispatcher.seen == RequestsOf(stream));
  }
  server->Broadcast({});
  dispatcher.AnswerLate();
  const vmm::Fd honest = *vmm::ConnectUnix(path);
  worker::Message hello;
  hello.mutable_request()->set_id(4);
  hello.mutable_request()->mutable_hello();
  const std::string body = hello.SerializeAsString();
  Send(honest.get(), Stream::HeaderOf(body.size()) + body);
  for (int i = 0; i < 4; ++i) loop.RunOnce(0);
  uint8_t byte;
  KVMBUS_ASSERT(*vmm::ReceiveSome(honest.get(), {&byte, 1}) == 1);
  hello.mutable_request()->set_id(3);
  dispatcher.Answer(hello.request(), [](const worker::Reply&) {});
  server.reset();
  dispatcher.AnswerLate();
}

void AttackLink(const Stream& stream, const std::string& path, vmm::Loop& loop) {
  constexpr uint64_t kHourNs = 3'600'000'000'000;
  const vmm::Fd listener = *vmm::ListenUnix(path);
  int closed = 0;
  vmm::WorkerLink::Callbacks callbacks;
  callbacks.status = [](const worker::Status&) {};
  callbacks.closed = [&] { ++closed; };
  auto link = *vmm::WorkerLink::Connect(loop, path, std::move(callbacks));
  int answers[3] = {};
  for (int& answer : answers)
    link->Call({}, kHourNs, [&](const vmm::Result<worker::Reply>&) { ++answer; });
  {
    const vmm::Fd hostile = vmm::AcceptUnix(listener.get());
    SendPieces(stream, hostile.get(), loop);
    for (const int answer : answers) KVMBUS_ASSERT(answer == 1 || (answer == 0 && closed == 0));
  }
  for (int i = 0; i < 4; ++i) loop.RunOnce(0);
  for (const int answer : answers) KVMBUS_ASSERT(answer == 1);
  KVMBUS_ASSERT(closed == 1);
  ::unlink(path.c_str());
}

std::string SocketPath() {
  char name[] = "/tmp/kvmbus-fuzz-XXXXXX";
  KVMBUS_ASSERT(::mkdtemp(name) != nullptr);
  static std::string folder;
  folder = name;
  std::atexit([] { ::rmdir(folder.c_str()); });
  return folder + "/worker.sock";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::unique_ptr<vmm::Loop> loop = *vmm::Loop::Create();
  static const std::string path = SocketPath();
  spdlog::set_level(spdlog::level::off);
  Input input(data, size);
  const uint8_t limit = input.Byte();
  const Stream stream(input);
  CheckReader(stream, limit);
  CheckReader(stream, cmd::ControlServer::kFrameLimit);
  AttackServer(stream, path, *loop);
  AttackLink(stream, path, *loop);
  return 0;
}
