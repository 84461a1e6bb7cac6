// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/inventory.h"

#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "vmm/config/disk_qos.h"
#include "vmm/config/limits.h"
#include "vmm/config/vm_files.h"
#include "vmm/manager/inventory_record.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"
#include "vmm/text/letter_case.h"

namespace kvmbus::vmm {
namespace {

/// A worker listens some milliseconds after its start, and what is lost to waiting stays a small
/// part of that: each try comes an eighth later than the one before it.
constexpr uint64_t kConnectDelayNs = 1'000'000, kConnectDelayLimitNs = 10'000'000;
constexpr uint64_t kHelloTimeoutNs = 30'000'000'000;
constexpr uint64_t kTurnOffTimeoutNs = 60'000'000'000;
constexpr uint64_t kShutdownTimeoutNs = 60'000'000'000;
constexpr uint64_t kDiskTimeoutNs = 60'000'000'000;
constexpr std::string_view kGuestShutDown = "guest shut down";  // a worker's last words

void TakeLastWords(const worker::ExitRecord& exit, worker::Status* status) {
  status->set_reason(exit.reason());
  status->set_clean_stop(exit.code() == 0 && exit.reason() == kGuestShutDown);
  if (exit.has_crash()) *status->mutable_crash() = exit.crash();
}

}  // namespace

Inventory::Inventory(Loop& loop, Options options, std::unique_ptr<ConfigStore> store)
    : loop_(loop),
      options_(std::move(options)),
      store_(std::move(store)),
      owners_(std::make_unique<DiskOwners>(
          loop_, DiskOwners::Options{options_.run_dir, options_.worker_path})) {}

Inventory::~Inventory() {
  *alive_ = false;
  for (auto& [id, record] : records_) {
    loop_.CancelTimer(record->start_timer);
    loop_.CancelTimer(record->connect_timer);
    if (record->process.pidfd.valid()) loop_.Unwatch(record->process.pidfd.get());
  }
}

Result<std::unique_ptr<Inventory>> Inventory::Open(Loop& loop, Options options) {
  options.state_dir = NormalFolder(options.state_dir);
  TRY_VOID(MakeFolders(options.state_dir, 0750));
  TRY_VOID(MakeFolders(options.run_dir, 0750));
  auto store = TRY(OpenFileConfigStore(options.state_dir));
  const ConfigStore::Listing listing = TRY(store->List());
  std::unique_ptr<Inventory> self(new Inventory(loop, std::move(options), std::move(store)));
  self->Load(listing);
  return self;
}

void Inventory::Load(const ConfigStore::Listing& listing) {
  for (const Error& error : listing.damaged) spdlog::error("{}", error.ToString());
  for (const config::Vm& vm : listing.vms) {
    auto record = std::make_unique<Record>();
    record->config = vm;
    record->status.set_state(RestStateOf(vm));
    record->status.set_vm_id(vm.id());
    Adopt(*(records_[vm.id()] = std::move(record)));
  }
  LoadCheckpoints(listing.checkpoints);
}

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

Inventory::Record* Inventory::Find(const std::string& id) const {
  const auto at = records_.find(id);
  return at == records_.end() ? nullptr : at->second.get();
}

Result<std::string> Inventory::Resolve(const std::string& id_or_name) const {
  const std::string upper = UpperCase(id_or_name);
  if (records_.count(upper) != 0) return upper;
  std::string found;
  for (const auto& [id, record] : records_) {
    if (record->config.name() != id_or_name) continue;
    if (!found.empty())
      return MakeError(Code::kFailedPrecondition,
                       "several virtual machines are named '{}': use the id", id_or_name);
    found = id;
  }
  if (found.empty())
    return MakeError(Code::kNotFound,
                     "there is no virtual machine '{}'; 'vmctl vm list' shows those that are",
                     id_or_name);
  return found;
}

Result<std::string> Inventory::Create(config::Vm vm) {
  ApplyDefaults(&vm);
  if (vm.folder().empty()) vm.set_folder(options_.state_dir);
  TRY_VOID(ValidateConfig(vm));
  if (vm.saved() || vm.has_checkpoint() || !vm.parent_checkpoint().empty())
    return MakeError(Code::kInvalidArgument,
                     "'{}': a new virtual machine has neither a saved state nor checkpoints",
                     vm.name());
  TRY_VOID(CheckIsNew(vm));
  TRY_VOID_CTX(store_->Save(vm), "storing '{}'", vm.name());
  const std::string id = vm.id();
  AddRecord(std::move(vm));
  return id;
}

Result<void> Inventory::CheckIsNew(const config::Vm& vm) const {
  for (const auto& [id, record] : records_) {
    if (id == vm.id() || record->config.name() == vm.name())
      return MakeError(
          Code::kAlreadyExists,
          "a virtual machine named '{}' exists already (id {}); choose another name or delete it",
          record->config.name(), id);
  }
  return {};
}

void Inventory::AddRecord(config::Vm vm) {
  const std::string id = vm.id();
  auto record = std::make_unique<Record>();
  record->status.set_state(RestStateOf(vm));
  record->status.set_vm_id(id);
  record->config = std::move(vm);
  records_[id] = std::move(record);
  Notify(id);
}

Result<void> Inventory::Register(const config::Vm& vm, const std::vector<config::Vm>& checkpoints) {
  TRY_VOID(CheckIsNew(vm));
  // Without its entry in the list nobody's files have changed but for paths.
  for (const config::Vm& checkpoint : checkpoints)
    TRY_VOID_CTX(store_->Save(checkpoint), "storing a checkpoint of '{}'", vm.name());
  TRY_VOID_CTX(store_->Adopt(vm), "storing '{}'", vm.name());
  AddRecord(vm);
  LoadCheckpoints(checkpoints);
  return {};
}

Result<void> Inventory::Delete(const std::string& id) {
  const Record* record = Find(id);
  if (record == nullptr) return MakeError(Code::kNotFound, "there is no virtual machine '{}'", id);
  if (record->active())
    return MakeError(Code::kFailedPrecondition,
                     "'{}' is running; stop it first ('vmctl vm stop', or 'vmctl vm turn-off')",
                     record->config.name());
  TRY_VOID(CheckNotBusy(record->config.name(), record->busy));
  TRY_VOID(store_->Delete(record->config));
  for (const char* file : {"lock", "exit", "worker.log", "worker.log.1"})
    ::unlink((RunDirOf(id) + "/" + file).c_str());
  ::rmdir(RunDirOf(id).c_str());
  records_.erase(id);
  Notify(id);
  return {};
}

Result<void> Inventory::Upgrade(const std::string& id, bool discard_saved_states) {
  Record* record = Find(id);
  if (record == nullptr) return MakeError(Code::kNotFound, "there is no virtual machine '{}'", id);
  if (record->active() || record->preparing)
    return MakeError(Code::kFailedPrecondition,
                     "'{}' is running; stop it first ('vmctl vm stop', or 'vmctl vm turn-off')",
                     record->config.name());
  TRY_VOID(CheckNotBusy(record->config.name(), record->busy));
  record->config = TRY_CTX(store_->Upgrade(record->config, discard_saved_states), "upgrading '{}'",
                           record->config.name());
  for (auto& [checkpoint_id, checkpoint] : record->checkpoints) {
    checkpoint.set_version(record->config.version());
    checkpoint.set_saved(false);
  }
  record->status.set_state(worker::OFF);  // saved memory has not come along
  Notify(id);
  return {};
}

std::vector<VmView> Inventory::List() const {
  std::vector<VmView> views;
  for (const auto& [id, record] : records_) views.push_back({record->config, record->status});
  return views;
}

Result<VmView> Inventory::Get(const std::string& id) const {
  const Record* record = Find(id);
  if (record == nullptr) return MakeError(Code::kNotFound, "there is no virtual machine '{}'", id);
  return VmView{record->config, record->status};
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
  record.link = TRY(WorkerLink::Connect(loop_, RunDirOf(record.config.id()) + "/worker.sock",
                                        std::move(callbacks)));
  SayHello(record);
  return {};
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
  TakeOverDisks(record, hello.config());
  OnStatus(record, hello.status());
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
  worker::Request request;
  request.mutable_turn_off();
  const pid_t pid = record->process.pid;
  Call(id, std::move(request), kTurnOffTimeoutNs,
       [this, alive = alive_, id, pid](const Result<worker::Reply>& reply) {
         if (reply.ok() || !*alive || reply.error().code() == Code::kUnavailable) return;
         // A worker that does not answer is pulled; its disks are as after a power cut.
         if (const Record* stuck = Find(id); stuck != nullptr && stuck->process.pid == pid)
           ::kill(pid, SIGKILL);
       });
}

Result<void> Inventory::BeginChange(const std::string& id) {
  Record* record = Find(id);
  if (record == nullptr) return MakeError(Code::kNotFound, "there is no virtual machine '{}'", id);
  TRY_VOID(CheckNotBusy(record->config.name(), record->busy));
  ++record->changes;
  return {};
}

void Inventory::EndChange(const std::string& id) {
  if (Record* record = Find(id)) --record->changes;
}

/// No job begins until `done` is called: its plan would lose what is stored by then.
Inventory::Done Inventory::InFlight(Record& record, Done done) {
  ++record.changes;
  return [this, alive = alive_, id = record.config.id(),
          done = std::move(done)](const Result<void>& result) {
    if (*alive) EndChange(id);
    done(result);
  };
}

void Inventory::AttachDisk(const std::string& id, const config::Disk& disk, Done done) {
  Record* record = Find(id);
  if (record == nullptr)
    return done(MakeError(Code::kNotFound, "there is no virtual machine '{}'", id));
  if (auto idle = CheckNotBusy(record->config.name(), record->busy); !idle.ok()) return done(idle);
  if (auto fit = CheckNotSaved(record->config); !fit.ok()) return done(fit);
  if (auto valid = ValidateDisk(record->config, disk); !valid.ok()) return done(valid);
  const auto store = [this, id, disk]() -> Result<void> {
    Record* target = Find(id);
    if (target == nullptr) return {};
    config::Vm changed = target->config;
    *changed.add_disks() = disk;
    TRY_VOID(store_->Save(changed));
    target->config = std::move(changed);
    return {};
  };
  if (!record->active()) return done(store());
  done = InFlight(*record, std::move(done));
  HoldSharedDisks(id, disk.shared() ? std::vector{disk.path()} : std::vector<std::string>(),
                  [this, id, disk, store, done = std::move(done)](const Result<void>& held) {
                    if (!held.ok()) return done(held);
                    worker::Request request;
                    *request.mutable_attach_disk()->mutable_disk() = disk;
                    Call(id, std::move(request), kDiskTimeoutNs,
                         [this, id, disk, store, done](const Result<worker::Reply>& reply) {
                           if (reply.ok()) return done(store());
                           ReleaseSharedDisk(id, disk.path());
                           done(reply.error());
                         });
                  });
}

void Inventory::DetachDisk(const std::string& id, uint32_t controller, uint32_t lun, Done done) {
  Record* record = Find(id);
  if (record == nullptr)
    return done(MakeError(Code::kNotFound, "there is no virtual machine '{}'", id));
  if (auto idle = CheckNotBusy(record->config.name(), record->busy); !idle.ok()) return done(idle);
  if (auto fit = CheckNotSaved(record->config); !fit.ok()) return done(fit);
  const auto matches = [=](const config::Disk& disk) {
    return disk.controller() == controller && disk.lun() == lun;
  };
  if (std::none_of(record->config.disks().begin(), record->config.disks().end(), matches))
    return done(
        MakeError(Code::kNotFound,
                  "'{}' has no disk on controller {} at location {}; 'vmctl vm show' lists them",
                  record->config.name(), controller, lun));
  const auto store = [this, id, matches]() -> Result<void> {
    Record* target = Find(id);
    if (target == nullptr) return {};
    config::Vm changed = target->config;
    auto& disks = *changed.mutable_disks();
    const std::string path = std::find_if(disks.begin(), disks.end(), matches)->path();
    disks.erase(std::remove_if(disks.begin(), disks.end(), matches), disks.end());
    TRY_VOID(store_->Save(changed));
    target->config = std::move(changed);
    ReleaseSharedDisk(id, path);
    return {};
  };
  if (!record->active()) return done(store());
  done = InFlight(*record, std::move(done));
  worker::Request request;
  request.mutable_detach_disk()->set_controller(controller);
  request.mutable_detach_disk()->set_lun(lun);
  Call(id, std::move(request), kDiskTimeoutNs,
       [done = std::move(done), store](const Result<worker::Reply>& reply) {
         done(reply.ok() ? store() : Result<void>(reply.error()));
       });
}

Result<void> Inventory::ChangeDisk(const std::string& id, uint32_t controller, uint32_t lun,
                                   const std::function<void(config::Disk*)>& change) {
  Record* record = Find(id);
  if (record == nullptr) return MakeError(Code::kNotFound, "there is no virtual machine '{}'", id);
  config::Vm changed = record->config;
  for (config::Disk& disk : *changed.mutable_disks()) {
    if (disk.kind() != config::HARD_DISK || disk.controller() != controller || disk.lun() != lun)
      continue;
    change(&disk);
    TRY_VOID(store_->Save(changed));
    record->config = std::move(changed);
    return {};
  }
  return MakeError(Code::kNotFound, "'{}' has no disk on controller {} at location {}",
                   record->config.name(), controller, lun);
}

/// Whether a child that was being made when the worker went has become the disk.
Result<void> Inventory::SettleDisks(Record& record) {
  const config::Vm before = record.config;
  for (const config::Disk& disk : before.disks()) {
    if (disk.next().empty()) continue;
    const bool made = FileExists(disk.next());
    TRY_VOID(ChangeDisk(before.id(), disk.controller(), disk.lun(), [made](config::Disk* settled) {
      if (made) settled->set_path(settled->next());
      settled->clear_next();
    }));
  }
  return {};
}

/// A worker whose disks have changed while vmmd was away.
void Inventory::TakeOverDisks(const Record& record, const config::Vm& worker) {
  const config::Vm before = record.config;
  for (const config::Disk& known : before.disks()) {
    for (const config::Disk& now : worker.disks()) {
      if (known.kind() != config::HARD_DISK || now.kind() != config::HARD_DISK ||
          now.controller() != known.controller() || now.lun() != known.lun() ||
          now.path() == known.path())
        continue;
      const auto stored =
          ChangeDisk(before.id(), known.controller(), known.lun(), [&now](config::Disk* disk) {
            disk->set_path(now.path());
            disk->clear_next();
          });
      if (!stored.ok()) spdlog::error("storing '{}': {}", before.name(), stored.error().ToString());
    }
  }
}

void Inventory::InsertDvd(const std::string& id, uint32_t controller, uint32_t lun,
                          const std::string& path, Done done) {
  if (path.empty()) return done(Error(Code::kInvalidArgument, "the image to insert has no name"));
  worker::Request request;
  request.mutable_insert_dvd()->set_controller(controller);
  request.mutable_insert_dvd()->set_lun(lun);
  request.mutable_insert_dvd()->set_path(path);
  config::Disk drive;
  drive.set_controller(controller);
  drive.set_lun(lun);
  drive.set_path(path);
  ChangeDisc(id, std::move(drive), std::move(request), std::move(done));
}

void Inventory::EjectDvd(const std::string& id, uint32_t controller, uint32_t lun, bool force,
                         Done done) {
  worker::Request request;
  request.mutable_eject_dvd()->set_controller(controller);
  request.mutable_eject_dvd()->set_lun(lun);
  request.mutable_eject_dvd()->set_force(force);
  config::Disk drive;
  drive.set_controller(controller);
  drive.set_lun(lun);
  ChangeDisc(id, std::move(drive), std::move(request), std::move(done));
}

/// `drive` as it is to be afterwards.
void Inventory::ChangeDisc(const std::string& id, config::Disk drive, worker::Request request,
                           Done done) {
  drive.set_kind(config::DVD);
  // The machine as it is to be, if it has the drive.
  const auto changed = [drive](config::Vm vm) -> Result<config::Vm> {
    for (config::Disk& disk : *vm.mutable_disks()) {
      if (disk.kind() != config::DVD || disk.controller() != drive.controller() ||
          disk.lun() != drive.lun())
        continue;
      disk.set_path(drive.path());
      TRY_VOID(ValidateDisk(vm, disk));
      return vm;
    }
    return MakeError(Code::kNotFound,
                     "'{}' has no DVD drive on controller {} at location {}; 'vmctl vm show' lists "
                     "them",
                     vm.name(), drive.controller(), drive.lun());
  };
  ChangeConfig(id, changed, std::move(request), std::move(done));
}

void Inventory::SetDiskQos(const std::string& id, uint32_t controller, uint32_t lun,
                           const config::DiskQosChange& change, Done done) {
  const auto changed = [=](config::Vm vm) -> Result<config::Vm> {
    for (config::Disk& disk : *vm.mutable_disks()) {
      if (disk.controller() != controller || disk.lun() != lun) continue;
      ChangeDiskQos(change, disk.mutable_qos());
      TRY_VOID(ValidateDisk(vm, disk));
      return vm;
    }
    return MakeError(Code::kNotFound,
                     "'{}' has no disk on controller {} at location {}; 'vmctl disk list' lists "
                     "them",
                     vm.name(), controller, lun);
  };
  worker::Request request;
  request.mutable_set_disk_qos()->set_controller(controller);
  request.mutable_set_disk_qos()->set_lun(lun);
  *request.mutable_set_disk_qos()->mutable_change() = change;
  ChangeConfig(id, changed, std::move(request), std::move(done));
}

/// Checks the change, has the running machine make it, and then stores it.
void Inventory::ChangeConfig(const std::string& id, const Change& changed, worker::Request request,
                             Done done) {
  Record* record = Find(id);
  if (record == nullptr)
    return done(MakeError(Code::kNotFound, "there is no virtual machine '{}'", id));
  if (auto idle = CheckNotBusy(record->config.name(), record->busy); !idle.ok()) return done(idle);
  if (auto fit = CheckNotSaved(record->config); !fit.ok()) return done(fit);
  if (auto valid = changed(record->config); !valid.ok()) return done(std::move(valid.error()));
  const auto store = [this, id, changed]() -> Result<void> {
    Record* target = Find(id);
    if (target == nullptr) return {};
    config::Vm vm = TRY(changed(target->config));
    TRY_VOID(store_->Save(vm));
    target->config = std::move(vm);
    return {};
  };
  if (!record->active()) return done(store());
  done = InFlight(*record, std::move(done));
  Call(id, std::move(request), kDiskTimeoutNs,
       [done = std::move(done), store](const Result<worker::Reply>& reply) {
         done(reply.ok() ? store() : Result<void>(reply.error()));
       });
}

Inventory::Subscription Inventory::Subscribe(std::function<void(const std::string&)> changed) {
  const uint64_t id = next_subscriber_++;
  subscribers_[id] = std::move(changed);
  return Subscription(new int, [this, id, alive = alive_](void* unused) {
    delete static_cast<int*>(unused);
    if (*alive) subscribers_.erase(id);
  });
}

void Inventory::Notify(const std::string& id) {
  std::vector<uint64_t> keys;
  for (const auto& [key, subscriber] : subscribers_) keys.push_back(key);
  for (const uint64_t key : keys) {
    const auto at = subscribers_.find(key);
    if (at == subscribers_.end()) continue;
    const auto subscriber = at->second;  // it may unsubscribe itself
    subscriber(id);
  }
}

}  // namespace kvmbus::vmm
