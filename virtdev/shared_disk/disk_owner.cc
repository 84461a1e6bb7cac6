// SPDX-License-Identifier: Apache-2.0
#include "virtdev/shared_disk/disk_owner.h"

#include <algorithm>

#include "vmm/os/entropy.h"
#include "vmm/os/log.h"
#include "vmm/os/unix_socket.h"

namespace kvmbus::virtdev {

using shared_disk::BytesOf;
using shared_disk::Call;
using shared_disk::Hello;
using shared_disk::HelloReply;
using shared_disk::Kind;
using shared_disk::TakeFrame;
using vmm::Code;
using vmm::Error;
using vmm::Result;

namespace {

uint64_t RandomId() {
  uint64_t id = 0;
  while (id == 0) vmm::FillRandom(BytesOf(id));
  return id;
}

template <size_t N>
void PutText(std::string_view text, std::array<char, N>* to) {
  to->fill(0);
  std::copy_n(text.begin(), std::min(text.size(), N - 1), to->begin());
}

}  // namespace

Result<std::unique_ptr<DiskOwner>> DiskOwner::Listen(Options options, vmm::Loop& main_loop,
                                                     std::vector<vmm::Loop*> io_loops) {
  KVMBUS_ASSERT(!io_loops.empty() && options.reservations != nullptr);
  TRY(ScsiDisk::Create(options.disk, {}));  // the same for each client
  std::unique_ptr<DiskOwner> self(
      new DiskOwner(std::move(options), main_loop, std::move(io_loops)));
  DiskOwner* raw = self.get();
  raw->listener_ = TRY(vmm::ListenUnix(raw->options_.socket_path, 0600));
  TRY_VOID(main_loop.Watch(raw->listener_.get(), EPOLLIN, [raw](uint32_t) { raw->Accept(); }));
  raw->options_.disk->SetResizeListener([raw, alive = raw->alive_] {
    raw->main_loop_.Post([raw, alive] {
      if (*alive) raw->OnResized();
    });
  });
  raw->CheckIdle();
  return self;
}

DiskOwner::DiskOwner(Options options, vmm::Loop& main_loop, std::vector<vmm::Loop*> io_loops)
    : options_(std::move(options)),
      main_loop_(main_loop),
      io_loops_(std::move(io_loops)),
      owner_id_(RandomId()) {}

DiskOwner::~DiskOwner() {
  options_.disk->SetResizeListener({});
  if (listener_.valid()) main_loop_.Unwatch(listener_.get());
  while (!peers_.empty()) Drop(peers_.begin()->first);
  *alive_ = false;
  main_loop_.CancelTimer(idle_timer_);
  for (auto& [id, entry] : queues_) {
    std::shared_ptr<OwnerQueue> queue = std::move(entry.queue);
    queue->loop().PostAndWait([&] { queue->StopAndWait(); });
  }
}

// --- connections

void DiskOwner::Accept() {
  vmm::Fd socket = vmm::AcceptUnix(listener_.get());
  if (!socket.valid()) return;
  if (peers_.size() >= kMaxPeers) {
    refused_.Add();
    KVMBUS_LOG_LIMITED("more than {} connections, one is turned away", kMaxPeers);
    return;
  }
  const uint64_t id = next_id_++;
  const int raw = socket.get();
  if (!main_loop_.Watch(raw, EPOLLIN, [this, id](uint32_t) { OnReady(id); }).ok()) return;
  Peer& peer = peers_[id];
  peer.socket = std::move(socket);
  peer.timer = main_loop_.AddTimer(options_.hello_wait_ns, [this, id] {
    peers_.at(id).timer = 0;
    Break(id, "it does not say what it is");
  });
  main_loop_.CancelTimer(idle_timer_);
  idle_timer_ = 0;
  used_ = true;
}

void DiskOwner::OnReady(uint64_t id) {
  Peer& peer = peers_.at(id);
  if (peer.kind == Kind::kHold || peer.kind == Kind::kGrowth) {
    // It has nothing to say: it goes, or talks nonsense.
    Drop(id);
    return;
  }
  if (peer.kind == Kind()) {
    const auto hello = TakeFrame<Hello>(peer.socket.get(), &peer.in, &peer.fds, 1);
    if (!hello.ok()) return Drop(id);
    if (*hello) OnHello(id, **hello);
    return;
  }
  const auto request = TakeFrame<shared_disk::Request>(peer.socket.get(), &peer.in);
  if (!request.ok() || (*request && !OnRequest(peer, **request))) Drop(id);
}

void DiskOwner::OnHello(uint64_t id, const Hello& hello) {
  Peer& peer = peers_.at(id);
  main_loop_.CancelTimer(peer.timer);
  peer.timer = 0;
  if (hello.magic != shared_disk::kMagic) return Break(id, "it speaks another protocol");
  Result<void> admitted;
  if (hello.version != shared_disk::kVersion) {
    admitted = vmm::MakeError(Code::kFailedPrecondition,
                              "the disk's owner is of another version ({}) than the virtual "
                              "machine ({}): stop all virtual machines that share the disk once",
                              shared_disk::kVersion, hello.version);
  } else if (hello.kind == Kind::kHold) {
    peer.kind = Kind::kHold;
  } else if (hello.kind == Kind::kClient) {
    admitted = AdmitClient(peer, hello);
  } else if (hello.kind == Kind::kQueue) {
    admitted = AdmitQueue(id, hello);
    if (admitted.ok()) return;  // its queue answers
  } else if (hello.kind == Kind::kGrowth) {
    return Grow(id, hello.range[0].size);
  } else {
    return Break(id, "it wants what we do not know");
  }
  Answer(id, admitted);
}

void DiskOwner::Answer(uint64_t id, const Result<void>& admitted) {
  const Peer& peer = peers_.at(id);
  HelloReply reply = Describe(peer.token);
  if (!admitted.ok()) {
    refused_.Add();
    reply.code = static_cast<uint32_t>(admitted.error().code());
    PutText(admitted.error().ToString(), &reply.message);
  }
  if (!vmm::SendFrame(peer.socket.get(), BytesOf(reply)).ok() || !admitted.ok()) Drop(id);
}

/// It goes on if the one who asked for it leaves.
void DiskOwner::Grow(uint64_t id, uint64_t size_bytes) {
  peers_.at(id).kind = Kind::kGrowth;
  if (!options_.grow) return Answer(id, Error(Code::kUnimplemented, "this disk cannot grow"));
  options_.grow(size_bytes, [this, alive = alive_, id](const Result<void>& grown) {
    if (!*alive || peers_.count(id) == 0) return;
    Answer(id, grown);
    Drop(id);
  });
}

Result<void> DiskOwner::AdmitClient(Peer& peer, const Hello& hello) {
  vmm::Guid initiator;
  initiator.bytes = hello.initiator;
  if (hello.ranges == 0 || hello.ranges > hello.range.size() || peer.fds.size() != 1)
    return Error(Code::kInvalidArgument, "a client comes with its memory");
  if (const auto at = present_.find(initiator); at != present_.end() && !at->second.expired())
    return Error(Code::kUnavailable, "the virtual machine has the disk already");
  std::vector<vmm::MemoryRange> ranges;
  for (const shared_disk::Range& range : std::span(hello.range).first(hello.ranges))
    ranges.push_back({range.gpa, range.size});
  auto memory = TRY(vmm::GuestMemory::Adopt(ranges, std::move(peer.fds.front())));
  peer.fds.clear();
  ScsiDisk::Options options;
  options.reservations = options_.reservations;
  options.initiator = initiator;
  options.shared = true;
  auto disk = TRY(ScsiDisk::Create(options_.disk, std::move(options)));
  peer.client = std::make_shared<OwnerClient>(std::move(memory), std::move(disk));
  present_[initiator] = peer.client;
  peer.initiator = initiator;
  peer.token = RandomId();
  peer.kind = Kind::kClient;
  return {};
}

Result<void> DiskOwner::AdmitQueue(uint64_t id, const Hello& hello) {
  Peer& peer = peers_.at(id);
  if (peer.fds.size() != 1) return Error(Code::kInvalidArgument, "a queue comes with its ring");
  const auto client = std::find_if(peers_.begin(), peers_.end(), [&](const auto& entry) {
    return hello.token != 0 && entry.second.token == hello.token;
  });
  if (client == peers_.end())
    return Error(Code::kNotFound, "the queue is of no virtual machine that has the disk");
  const auto count = std::count_if(queues_.begin(), queues_.end(), [&](const auto& entry) {
    return entry.second.token == hello.token;
  });
  if (static_cast<size_t>(count) >= kMaxQueuesPerClient)
    return Error(Code::kResourceExhausted, "the virtual machine has too many queues");
  auto ring = TRY(DiskRing::Adopt(std::move(peer.fds.front())));
  main_loop_.Unwatch(peer.socket.get());
  const auto ended = [this, alive = alive_, id] {
    main_loop_.Post([this, alive, id] {
      if (*alive) OnQueueEnded(id);
    });
  };
  vmm::Loop& loop = *io_loops_[id % io_loops_.size()];
  auto queue = std::make_shared<OwnerQueue>(client->second.client, std::move(peer.socket),
                                            std::move(ring), loop, broken_, ended);
  queues_[id] = {queue, hello.token};
  peers_.erase(id);
  const HelloReply reply = Describe(0);
  loop.Post([queue, bytes = std::vector<uint8_t>(BytesOf(reply).begin(), BytesOf(reply).end())] {
    queue->Start(bytes);
  });
  return {};
}

HelloReply DiskOwner::Describe(uint64_t token) const {
  const DiskInfo& info = options_.disk->info();
  HelloReply reply;
  reply.token = token;
  reply.owner = owner_id_;
  reply.size_bytes = info.size_bytes;
  reply.logical_sector_bytes = info.logical_sector_bytes;
  reply.physical_sector_bytes = info.physical_sector_bytes;
  reply.disk_id = info.disk_id.bytes;
  PutText(options_.disk->format(), &reply.format);
  return reply;
}

/// A client's. False: it makes no sense.
bool DiskOwner::OnRequest(Peer& peer, const shared_disk::Request& request) {
  ScsiDisk& disk = *peer.client->disk;
  shared_disk::Reply reply;
  reply.call = request.call;
  reply.size_bytes = options_.disk->info().size_bytes;
  switch (request.call) {
    case Call::kReset:
      disk.Reset();
      break;
    case Call::kSave: {
      const ScsiDisk::State state = disk.Save();
      reply.reported_sectors = state.reported_sectors;
      reply.sense = {static_cast<uint8_t>(state.stored_sense.key), state.stored_sense.asc,
                     state.stored_sense.ascq};
      break;
    }
    case Call::kRestore: {
      const ScsiDisk::State state = {
          request.reported_sectors,
          {static_cast<scsi::SenseKey>(request.sense[0]), request.sense[1], request.sense[2]}};
      if (ScsiDisk::IsValid(state)) {
        disk.Restore(state);
      } else {
        reply.refused = 1;
      }
      break;
    }
    default:
      broken_.Add();
      KVMBUS_LOG_LIMITED("a client is disconnected: it asks what we do not know");
      return false;
  }
  return vmm::SendFrame(peer.socket.get(), BytesOf(reply)).ok();
}

void DiskOwner::OnResized() {
  shared_disk::Reply event;
  event.call = Call::kResized;
  event.size_bytes = options_.disk->info().size_bytes;
  std::vector<uint64_t> deaf;
  for (auto& [id, peer] : peers_) {
    if (peer.client == nullptr) continue;
    peer.client->disk->NotifyResized();
    if (!vmm::SendFrame(peer.socket.get(), BytesOf(event)).ok()) deaf.push_back(id);
  }
  for (const uint64_t id : deaf) Drop(id);
}

// --- their end

void DiskOwner::Break(uint64_t id, const char* what) {
  broken_.Add();
  KVMBUS_LOG_LIMITED("a connection is ended: {}", what);
  Drop(id);
}

void DiskOwner::Drop(uint64_t id) {
  auto node = peers_.extract(id);
  if (node.empty()) return;
  Peer& peer = node.mapped();
  main_loop_.CancelTimer(peer.timer);
  main_loop_.Unwatch(peer.socket.get());
  for (const auto& [queue_id, entry] : queues_) {
    if (peer.token != 0 && entry.token == peer.token)
      entry.queue->loop().Post([queue = entry.queue] { queue->Stop(); });
  }
  if (peer.client != nullptr) {
    peer.client.reset();
    const auto at = present_.find(peer.initiator);
    if (at != present_.end() && at->second.expired()) present_.erase(at);
  }
  CheckIdle();
}

void DiskOwner::OnQueueEnded(uint64_t id) {
  queues_.erase(id);
  std::erase_if(present_, [](const auto& entry) { return entry.second.expired(); });
  CheckIdle();
}

void DiskOwner::CheckIdle() {
  if (!peers_.empty() || !queues_.empty() || idle_timer_ != 0 || !*alive_) return;
  idle_timer_ = main_loop_.AddTimer(used_ ? options_.idle_ns : options_.first_wait_ns, [this] {
    idle_timer_ = 0;
    if (peers_.empty() && queues_.empty() && options_.on_idle) options_.on_idle();
  });
}

void DiskOwner::VisitCounters(const vmm::CounterVisitor& visit) const {
  visit("shared_disk_broken_peers", broken_);
  visit("shared_disk_refused_peers", refused_);
}

}  // namespace kvmbus::virtdev
