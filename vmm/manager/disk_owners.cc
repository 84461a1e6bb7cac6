// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/disk_owners.h"

#include <sys/epoll.h>
#include <unistd.h>

#include "vmm/os/file.h"
#include "vmm/os/log.h"
#include "vmm/os/unix_socket.h"
#include "worker/worker.pb.h"

namespace kvmbus::vmm {

namespace {

constexpr uint64_t kConnectRetryNs = 10'000'000;
constexpr uint64_t kAnswerNs = 10'000'000'000;
/// A fixed image gets all of its new space at once.
constexpr uint64_t kGrowthNs = 600'000'000'000;

/// Why the process of this folder failed, by its own last words.
Error LastWords(const std::string& folder, const std::string& how) {
  const auto bytes = ReadWholeFile(folder + "/exit", 1u << 20);
  worker::ExitRecord exit;
  if (bytes.ok() && exit.ParseFromString(*bytes) && exit.code() != 0)
    return Error(CodeFromNumber(exit.code()), exit.reason());
  return MakeError(Code::kInternal, "the disk's owner {}; see '{}/owner.log'",
                   how.empty() ? "ended without a word" : how, folder);
}

}  // namespace

DiskOwners::DiskOwners(Loop& loop, Options options) : loop_(loop), options_(std::move(options)) {}

DiskOwners::~DiskOwners() {
  *alive_ = false;
  for (auto& [folder, owner] : owners_) {
    loop_.CancelTimer(owner.timer);
    if (owner.socket.valid()) loop_.Unwatch(owner.socket.get());
  }
  for (auto& [pid, child] : children_) loop_.Unwatch(child.process.pidfd.get());
}

void DiskOwners::Acquire(const std::string& image, Done done) {
  const std::string folder = shared_disk::OwnerFolder(options_.run_dir, image);
  Owner& owner = owners_[folder];
  if (owner.serves) {
    if (Hold hold = owner.hold.lock()) return done(hold);
  }
  owner.image = image;
  owner.folder = folder;
  owner.waiters.push_back(std::move(done));
  if (owner.waiters.size() != 1) return;
  owner.deadline_ns = loop_.clock().MonotonicNs() + options_.start_timeout_ns;
  if (!owner.socket.valid()) TryLater(owner, 0);
}

bool DiskOwners::Serves(const std::string& image) const {
  const auto at = owners_.find(shared_disk::OwnerFolder(options_.run_dir, image));
  return at != owners_.end() && at->second.serves;
}

void DiskOwners::Grow(const std::string& image, uint64_t size_bytes, OwnerCall::Done done) {
  const std::string folder = shared_disk::OwnerFolder(options_.run_dir, image);
  shared_disk::Hello hello;
  hello.kind = shared_disk::Kind::kGrowth;
  hello.range[0] = {0, size_bytes};
  const uint64_t id = next_call_++;
  const OwnerCall::Done ended = [this, id, done](const Result<void>& grown) {
    const auto call = std::move(calls_.extract(id).mapped());  // lives until it has told
    done(grown);
  };
  auto call = OwnerCall::Start(loop_, folder + "/owner.sock", hello, kGrowthNs, ended);
  if (!call.ok()) return done(call.error());
  calls_[id] = std::move(call).value();
}

DiskOwners::Hold DiskOwners::MakeHold(Owner& owner) {
  if (Hold hold = owner.hold.lock()) return hold;
  Hold hold(new int, [this, alive = alive_, folder = owner.folder](void* unused) {
    delete static_cast<int*>(unused);
    if (*alive) Release(folder);
  });
  owner.hold = hold;
  return hold;
}

/// The connection ends with it; the owner then ends in its own time.
void DiskOwners::Release(const std::string& folder) {
  const auto at = owners_.find(folder);
  if (at == owners_.end() || !at->second.hold.expired() || !at->second.waiters.empty()) return;
  loop_.CancelTimer(at->second.timer);
  if (at->second.socket.valid()) loop_.Unwatch(at->second.socket.get());
  owners_.erase(at);
}

// --- finding one, or starting it

void DiskOwners::TryLater(Owner& owner, uint64_t delay_ns) {
  loop_.CancelTimer(owner.timer);
  owner.timer = loop_.AddTimer(delay_ns, [this, folder = owner.folder] { Try(folder); });
}

void DiskOwners::Try(const std::string& folder) {
  Owner& owner = owners_.at(folder);
  owner.timer = 0;
  if (Greet(owner)) return;
  if (loop_.clock().MonotonicNs() >= owner.deadline_ns && !owner.waiters.empty())
    return Fail(folder,
                MakeError(Code::kDeadlineExceeded,
                          "the disk's owner did not come up in time; see '{}'", LogPath(owner)));
  if (owner.pid < 0) {
    if (auto spawned = Spawn(owner); !spawned.ok()) return Fail(folder, spawned.error());
  }
  TryLater(owner, kConnectRetryNs);
}

bool DiskOwners::Greet(Owner& owner) {
  auto socket = ConnectUnix(owner.folder + "/owner.sock");
  if (!socket.ok()) return false;
  const shared_disk::Hello hello;
  if (!SendFrame(socket->get(), shared_disk::BytesOf(hello)).ok() ||
      !loop_
           .Watch(socket->get(), EPOLLIN,
                  [this, folder = owner.folder](uint32_t) { OnReady(folder); })
           .ok())
    return false;
  owner.socket = std::move(*socket);
  owner.in.clear();
  owner.timer = loop_.AddTimer(kAnswerNs, [this, folder = owner.folder] {
    owners_.at(folder).timer = 0;
    Fail(folder, MakeError(Code::kDeadlineExceeded,
                           "the disk's owner does not answer; see '{}/owner.log'", folder));
  });
  return true;
}

Result<void> DiskOwners::Spawn(Owner& owner) {
  TRY_VOID(MakeFolders(owner.folder, 0750));
  ::unlink((owner.folder + "/exit").c_str());
  WorkerProcess process =
      TRY(SpawnDiskOwner({options_.program, owner.folder, LogPath(owner)}, owner.image));
  const pid_t pid = process.pid;
  TRY_VOID(
      loop_.Watch(process.pidfd.get(), EPOLLIN, [this, pid](uint32_t) { OnProcessEnded(pid); }));
  children_[pid] = {std::move(process), owner.folder};
  owner.pid = pid;
  owner.starting = true;
  return {};
}

// --- its life

void DiskOwners::OnReady(const std::string& folder) {
  Owner& owner = owners_.at(folder);
  const auto reply = shared_disk::TakeFrame<shared_disk::HelloReply>(owner.socket.get(), &owner.in);
  // To one that we hold it has no more to say.
  if (!reply.ok() || owner.serves) return OnLost(owner);
  if (*reply) OnReply(owner, **reply);
}

void DiskOwners::OnReply(Owner& owner, const shared_disk::HelloReply& reply) {
  if (const auto served = ResultOf(reply); !served.ok()) return Fail(owner.folder, served.error());
  loop_.CancelTimer(owner.timer);
  owner.timer = 0;
  owner.serves = true;
  owner.starting = false;
  const Hold hold = MakeHold(owner);
  for (const Done& waiter : std::exchange(owner.waiters, {})) waiter(hold);
}

void DiskOwners::OnLost(Owner& owner) {
  loop_.Unwatch(owner.socket.get());
  owner.socket.Reset();
  const bool served = std::exchange(owner.serves, false);
  if (served)
    spdlog::warn("the owner of shared disk '{}' is gone; it is started anew", owner.image);
  TryLater(owner, served ? options_.restart_ns : kConnectRetryNs);
}

void DiskOwners::OnProcessEnded(pid_t pid) {
  auto node = children_.extract(pid);
  if (node.empty()) return;
  loop_.Unwatch(node.mapped().process.pidfd.get());
  const std::string how = ReapWorker(pid);
  const std::string folder = node.mapped().folder;
  const auto at = owners_.find(folder);
  if (at == owners_.end() || at->second.pid != pid) return;
  at->second.pid = -1;
  if (at->second.socket.valid()) return;  // the socket's end tells the rest
  // Nobody came in time, or the former owner saw us too late: once more.
  if (how == "exited with status 0") return TryLater(at->second, kConnectRetryNs);
  const Error error = LastWords(folder, how);
  if (!at->second.waiters.empty()) return Fail(folder, error);
  spdlog::error("shared disk '{}': {}", at->second.image, error.ToString());
  // One that served is started again soon (OnLost), one that cannot begin is given some time.
  TryLater(at->second, (at->second.starting ? 10 : 1) * options_.restart_ns);
}

/// Those who wait hear of it. Whoever holds it still hopes for a better time.
void DiskOwners::Fail(const std::string& folder, const Error& error) {
  Owner& owner = owners_.at(folder);
  if (owner.socket.valid()) loop_.Unwatch(owner.socket.get());
  owner.socket.Reset();
  owner.serves = false;
  const std::vector<Done> waiters = std::exchange(owner.waiters, {});
  if (owner.hold.expired()) {
    loop_.CancelTimer(owner.timer);
    owners_.erase(folder);
  } else {
    spdlog::error("shared disk '{}': {}", owner.image, error.ToString());
    TryLater(owner, 10 * options_.restart_ns);
  }
  for (const Done& waiter : waiters) waiter(error);
}

}  // namespace kvmbus::vmm
