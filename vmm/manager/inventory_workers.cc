// SPDX-License-Identifier: Apache-2.0
// Inventory: the workers of its machines, from their start to their end.
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "vmm/config/limits.h"
#include "vmm/config/vm_files.h"
#include "vmm/manager/inventory.h"
#include "vmm/manager/inventory_record.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"

namespace kvmbus::vmm {
namespace {

/// A worker listens some milliseconds after its start, and what is lost to waiting stays a small
/// part of that: each try comes an eighth later than the one before it.
constexpr uint64_t kConnectDelayNs = 1'000'000, kConnectDelayLimitNs = 10'000'000;
/// After a worker hung up: if it ends, that is known by then.
constexpr uint64_t kReconnectDelayNs = 200'000'000;
constexpr uint64_t kHelloTimeoutNs = 30'000'000'000;
constexpr uint64_t kTurnOffTimeoutNs = 60'000'000'000;
constexpr uint64_t kShutdownTimeoutNs = 60'000'000'000;
constexpr std::string_view kGuestShutDown = "guest shut down";  // a worker's last words

void TakeLastWords(const worker::ExitRecord& exit, worker::Status* status) {
  status->set_reason(exit.reason());
  status->set_clean_stop(exit.code() == 0 && exit.reason() == kGuestShutDown);
  if (exit.has_crash()) *status->mutable_crash() = exit.crash();
}

}  // namespace

void Inventory::Adopt(Record& record) {
  auto process = Connect(record).ok() ? AdoptWorker(record.link->pid())
                                      : Error(Code::kUnavailable, "nobody listens");
  if (!process.ok()) {
    record.link.reset();
    return FindEnded(record);
  }
  record.status.set_state(worker::RUNNING);  // until its hello says more
  record.status.set_pid(static_cast<uint32_t>(process->pid));
  Watch(record, std::move(process).value());
  HoldForGood(record.config.id());
  spdlog::info("found '{}' running (process {})", record.config.name(), record.process.pid);
}

/// It does not run; its worker, if it had one, ended while nobody looked.
void Inventory::FindEnded(Record& record) {
  const std::string& id = record.config.id();
  record.status.set_state(RestStateOf(record.config));
  // An imported one may have a saved state of Hyper-V's; one that ran here has outlived that.
  const bool ran = FileExists(RunDirOf(id) + "/lock");
  TidySavedState(record.config, !ran);
  const auto exit_bytes = ReadWholeFile(RunDirOf(id) + "/exit", 1u << 20);
  worker::ExitRecord exit;
  if (exit_bytes.ok() && exit.ParseFromString(*exit_bytes)) {
    TakeLastWords(exit, &record.status);
  } else if (ran) {
    record.status.set_reason("its worker ended without a word while vmmd was away (killed?)");
  }
}

Result<void> Inventory::HostIsFit() const {
  for (const HostRequirement& need : options_.check_host()) {
    if (!need.ok)
      return MakeError(need.code, "{}: found {}, needed {}; {}", need.name, need.found, need.needed,
                       need.remedy);
  }
  return {};
}

void Inventory::Start(const std::string& id, Done done) {
  Record* record = Find(id);
  if (record == nullptr)
    return done(MakeError(Code::kNotFound, "there is no virtual machine '{}'", id));
  const auto refuse = [&](Error error) {
    done(std::move(error).WithContext(fmt::format("starting '{}'", record->config.name())));
  };
  if (record->preparing)
    return refuse(Error(Code::kAlreadyExists, "it is being started already; wait for it"));
  if (auto idle = CheckNotBusy(record->config.name(), record->busy); !idle.ok())
    return refuse(std::move(idle.error()));
  if (record->active())
    return refuse(MakeError(Code::kAlreadyExists,
                            "it is running already (process {}); stop it first",
                            record->process.pid));
  if (auto fit = HostIsFit(); !fit.ok()) return refuse(std::move(fit.error()));
  if (auto settled = SettleDisks(*record); !settled.ok()) return refuse(std::move(settled.error()));
  if (auto valid = ValidateConfig(record->config); !valid.ok())
    return refuse(std::move(valid.error()));
  if (auto free = CheckNothingStandsOnDisks(record->config); !free.ok())
    return refuse(std::move(free.error()));
  record->preparing = true;
  if (image_worker_ == nullptr) return HoldAndLaunch(id, std::move(done));
  const Done resumed = [this, alive = alive_, id,
                        done = std::move(done)](const Result<void>& result) {
    done(result);
    if (*alive) image_worker_->Resume(id);
  };
  image_worker_->Suspend(id, [this, alive = alive_, id, resumed] {
    if (*alive) HoldAndLaunch(id, resumed);
  });
}

void Inventory::HoldAndLaunch(const std::string& id, Done done) {
  Record* record = Find(id);
  if (record == nullptr || !record->preparing)
    return done(Error(Code::kCancelled, "turned off while it was starting"));
  HoldSharedDisks(
      id, SharedImages(record->config),
      [this, id, done = std::move(done)](const Result<void>& held) {
        Record* ready = Find(id);
        if (ready == nullptr || !ready->preparing)
          return done(Error(Code::kCancelled, "turned off while it was starting"));
        ready->preparing = false;
        if (held.ok()) return Launch(id, done);
        ready->shared_disks.clear();
        Error error = held.error();
        done(std::move(error).WithContext(fmt::format("starting '{}'", ready->config.name())));
      });
}

void Inventory::Launch(const std::string& id, Done done) {
  Record* record = Find(id);
  if (auto spawned = Spawn(*record); !spawned.ok()) {
    record->shared_disks.clear();
    return done(std::move(spawned.error())
                    .WithContext(fmt::format("starting '{}'", record->config.name())));
  }
  record->status.Clear();
  record->status.set_vm_id(id);
  record->status.set_state(worker::STARTING);
  record->start_done = std::move(done);
  record->start_timer = loop_.AddTimer(options_.start_timeout_ns, [this, record] {
    ::kill(record->process.pid, SIGKILL);
    FinishStart(*record, Error(Code::kDeadlineExceeded,
                               "it did not come up in time; its worker was killed"));
  });
  Notify(id);
  record->connect_delay_ns = kConnectDelayNs;
  TryConnect(*record);
}

Result<void> Inventory::Spawn(Record& record) {
  const std::string run_dir = RunDirOf(record.config.id());
  TRY_VOID(MakeFolders(run_dir, 0750));
  ::unlink((run_dir + "/exit").c_str());
  const std::string log = run_dir + "/worker.log";
  ::rename(log.c_str(), (log + ".1").c_str());  // of a crash it says why
  Watch(record, TRY(SpawnWorker({options_.worker_path, run_dir, log}, record.config)));
  return {};
}

void Inventory::Watch(Record& record, WorkerProcess process) {
  if (record.process.pidfd.valid()) loop_.Unwatch(record.process.pidfd.get());
  record.process = std::move(process);
  (void)loop_.Watch(record.process.pidfd.get(), EPOLLIN,
                    [this, raw = &record](uint32_t) { OnWorkerEnded(*raw); });
}

void Inventory::TryConnect(Record& record) {
  record.connect_timer = 0;
  if (!record.active() || Connect(record).ok()) return;
  uint64_t& delay = record.connect_delay_ns;
  record.connect_timer = loop_.AddTimer(delay, [this, raw = &record] { TryConnect(*raw); });
  delay = std::min(delay + delay / 8, kConnectDelayLimitNs);
}

Result<void> Inventory::Connect(Record& record) {
  WorkerLink::Callbacks callbacks;
  callbacks.status = [this, raw = &record](const worker::Status& status) {
    OnStatus(*raw, status);
  };
  callbacks.closed = [this, id = record.config.id()] { Reconnect(id); };
  record.link = TRY(WorkerLink::Connect(loop_, RunDirOf(record.config.id()) + "/worker.sock",
                                        std::move(callbacks)));
  SayHello(record);
  return {};
}

/// A worker hangs up on a vmmd that has stood still for long; the guest has run on.
void Inventory::Reconnect(const std::string& id) {
  Record* record = Find(id);
  if (record == nullptr || !record->active()) return;
  record->link_lost = true;
  loop_.CancelTimer(record->connect_timer);
  record->connect_delay_ns = kConnectDelayNs;
  record->connect_timer = loop_.AddTimer(kReconnectDelayNs, [this, record] {
    spdlog::warn("'{}': its worker (process {}) hung up, and is connected to again",
                 record->config.name(), record->process.pid);
    TryConnect(*record);
  });
}

/// Until it is answered: a worker that loads its memory, or works on its disks, is silent for long.
void Inventory::SayHello(Record& record) {
  worker::Request hello;
  hello.mutable_hello()->set_protocol(worker::PROTOCOL_CURRENT);
  record.link->Call(std::move(hello), kHelloTimeoutNs,
                    [this, alive = alive_, raw = &record](const Result<worker::Reply>& reply) {
                      if (!*alive) return;
                      if (reply.ok() && reply->has_hello()) return OnHello(*raw, reply->hello());
                      if (reply.ok() || reply.error().code() != Code::kDeadlineExceeded) return;
                      spdlog::warn("'{}': its worker (process {}) does not answer",
                                   raw->config.name(), raw->process.pid);
                      SayHello(*raw);
                    });
}

void Inventory::OnHello(Record& record, const worker::HelloReply& hello) {
  // One in a PID namespace of its own is known by the number that it has there.
  const auto pid = static_cast<pid_t>(hello.status().pid());
  if (pid != record.process.pid) {
    auto process = AdoptWorker(pid);
    if (process.ok()) Watch(record, std::move(process).value());
  }
  if (hello.protocol() != worker::PROTOCOL_CURRENT) return OnStranger(record, hello);
  TakeOverDisks(record, hello);
  AwaitChildren(record.config.id(), hello.config());
  const bool again = std::exchange(record.link_lost, false);
  if (again) record.status.clear_state();  // what it led to is done again
  OnStatus(record, hello.status());
  if (again && !record.off_waiters.empty() && record.status.state() != worker::SAVED)
    SendTurnOff(record);
  // After a start there is nothing to tidy, but for one that an earlier vmmd restored.
  const bool runs = record.status.state() == worker::RUNNING;
  if (runs && !record.status.capturing()) TidyRestoredSoon(record.config.id());
}

/// The guest runs on; its worker is not told anything that it could take for something else.
void Inventory::OnStranger(Record& record, const worker::HelloReply& hello) {
  record.stranger = fmt::format(
      "its worker (process {}) is of another version of kvmbus: it speaks protocol {}, and vmmd {}",
      record.process.pid, hello.protocol(), static_cast<int>(worker::PROTOCOL_CURRENT));
  spdlog::error("'{}': {}", record.config.name(), record.stranger);
  record.status.set_reason(record.stranger);
  record.status.set_pid(static_cast<uint32_t>(record.process.pid));
  if (record.start_done) {  // it is vmmd that is the old one
    ::kill(record.process.pid, SIGKILL);
    FinishStart(record, MakeError(Code::kFailedPrecondition,
                                  "{}; restart vmmd ('systemctl restart vmmd')", record.stranger));
  }
  Notify(record.config.id());
}

/// Its own last replies are in the socket's buffer: they are read before the link goes.
void Inventory::DropLink(const std::string& id) {
  loop_.Post([this, alive = alive_, id] {
    if (!*alive) return;
    if (Record* ended = Find(id); ended != nullptr && !ended->active()) ended->link.reset();
  });
}

void Inventory::OnStatus(Record& record, const worker::Status& status) {
  if (!record.stranger.empty()) return;
  const worker::State before = record.status.state();
  record.status = status;
  Notify(record.config.id());
  if (status.state() == worker::RUNNING) FinishStart(record, {});
  if (status.restored() && before != worker::PAUSED) ResumeRestored(record);
  if (status.state() == worker::SAVED && before != worker::SAVED) CommitSaved(record);
}

void Inventory::FinishStart(Record& record, const Result<void>& result) {
  loop_.CancelTimer(record.start_timer);
  record.start_timer = 0;
  if (!record.start_done) return;
  const Done done = std::exchange(record.start_done, nullptr);
  if (result.ok()) return done(result);
  Error error = result.error();
  done(std::move(error).WithContext(fmt::format("starting '{}'", record.config.name())));
}

void Inventory::OnWorkerEnded(Record& record) {
  const std::string& id = record.config.id();
  loop_.Unwatch(record.process.pidfd.get());
  const std::string how = ReapWorker(record.process.pid);
  loop_.CancelTimer(record.connect_timer);
  record.connect_timer = 0;
  record.process = {};
  record.stranger.clear();
  TidySavedState(record.config, false);
  record.shared_disks.clear();
  const auto exit_bytes = ReadWholeFile(RunDirOf(id) + "/exit", 1u << 20);
  worker::ExitRecord exit;
  const bool has_record = exit_bytes.ok() && exit.ParseFromString(*exit_bytes);
  worker::Status status;
  status.set_vm_id(id);
  status.set_state(RestStateOf(record.config));
  if (record.status.has_crash()) *status.mutable_crash() = record.status.crash();
  if (has_record) {
    TakeLastWords(exit, &status);
    if (record.config.saved() && exit.code() == 0) status.set_reason("saved");
  } else {
    status.set_reason(
        fmt::format("its worker {}", how.empty() ? "ended without a word (killed?)" : how));
  }
  spdlog::info("'{}' is off: {}", record.config.name(), status.reason());
  record.status = status;
  DropLink(id);
  for (const char* file : {"worker.sock", "console.sock"})
    ::unlink((RunDirOf(id) + "/" + file).c_str());
  FinishStart(record,
              Error(has_record && exit.code() != 0 ? CodeFromNumber(exit.code()) : Code::kInternal,
                    status.reason()));
  for (const Done& waiter : std::exchange(record.off_waiters, {})) waiter({});
  Notify(id);
}

void Inventory::Call(const std::string& id, worker::Request request, uint64_t timeout_ns,
                     ReplyDone done) {
  Record* record = Find(id);
  if (record == nullptr)
    return done(MakeError(Code::kNotFound, "there is no virtual machine '{}'", id));
  // One that was found running is asked at once: it has not said its process yet.
  if (!record->link)
    return done(MakeError(Code::kFailedPrecondition,
                          "'{}' is not running; start it first ('vmctl vm start')",
                          record->config.name()));
  if (!record->stranger.empty())
    return done(MakeError(Code::kFailedPrecondition,
                          "'{}': {}; shut its guest down from within, or turn it off ('vmctl vm "
                          "turn-off'): the next start takes the new version",
                          record->config.name(), record->stranger));
  record->link->Call(
      std::move(request), timeout_ns,
      [name = record->config.name(), done = std::move(done)](const Result<worker::Reply>& reply) {
        if (reply.ok()) return done(reply);
        Error error = reply.error();
        done(std::move(error).WithContext(fmt::format("'{}'", name)));
      });
}

void Inventory::Shutdown(const std::string& id, bool restart, bool force, Done done) {
  worker::Request request;
  request.mutable_shutdown()->set_restart(restart);
  request.mutable_shutdown()->set_force(force);
  Call(id, std::move(request), kShutdownTimeoutNs,
       [done = std::move(done)](const Result<worker::Reply>& reply) {
         done(reply.ok() ? Result<void>() : reply.error());
       });
}

void Inventory::TurnOff(const std::string& id, Done done) {
  Record* record = Find(id);
  if (record == nullptr)
    return done(MakeError(Code::kNotFound, "there is no virtual machine '{}'", id));
  record->preparing = false;
  if (!record->active()) return done({});  // it is off: that is what was asked for
  if (record->status.state() == worker::SAVED && !record->config.saved())
    return done(
        MakeError(Code::kFailedPrecondition,
                  "'{}' is saved, and '{}' cannot be written to say so: make room there; it "
                  "is tried again and again",
                  record->config.name(), ConfigFileOf(record->config)));
  record->off_waiters.push_back(std::move(done));
  SendTurnOff(*record);
}

/// One that hangs up is asked again when it is connected to, or has ended.
void Inventory::SendTurnOff(const Record& record) {
  worker::Request request;
  request.mutable_turn_off();
  const pid_t pid = record.process.pid;
  const std::string& id = record.config.id();
  Call(id, std::move(request), kTurnOffTimeoutNs,
       [this, alive = alive_, id, pid](const Result<worker::Reply>& reply) {
         if (reply.ok() || !*alive || reply.error().code() == Code::kUnavailable) return;
         // A worker that does not answer is pulled; its disks are as after a power cut.
         if (const Record* stuck = Find(id); stuck != nullptr && stuck->process.pid == pid)
           ::kill(pid, SIGKILL);
       });
}

}  // namespace kvmbus::vmm
