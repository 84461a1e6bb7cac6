// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmm/worker.h"

#include <fcntl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "cmd/vmm/worker_reply.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"
#include "vmm/os/signals.h"

namespace kvmbus::cmd {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::Result;

constexpr uint32_t kPulseLimit = 1000;
constexpr uint64_t kFreezeLimitNs = 600'000'000'000;

worker::State ToProto(vmm::MachineState state) {
  switch (state) {
    case vmm::MachineState::kOff:
      return worker::OFF;
    case vmm::MachineState::kStarting:
      return worker::STARTING;
    case vmm::MachineState::kRunning:
      return worker::RUNNING;
    case vmm::MachineState::kPausing:
      return worker::PAUSING;
    case vmm::MachineState::kPaused:
      return worker::PAUSED;
    case vmm::MachineState::kSaving:
      return worker::SAVING;
    case vmm::MachineState::kSaved:
      return worker::SAVED;
    case vmm::MachineState::kStopping:
      return worker::STOPPING;
  }
  return worker::STATE_UNSPECIFIED;
}

/// Requests that make another machine of it, or other files of its disks.
bool ChangesMachine(worker::Request::CallCase call) {
  using Call = worker::Request;
  return call == Call::kPulse || call == Call::kAttachDisk || call == Call::kDetachDisk ||
         call == Call::kInsertDvd || call == Call::kEjectDvd || call == Call::kResizeDisk ||
         call == Call::kCreateChild || call == Call::kMergeDisk;
}

/// What a guest wrote, fit for a terminal: printable ASCII and line ends, the last `limit` bytes.
std::string Sanitise(std::string_view text, size_t limit) {
  std::string clean;
  for (const char c : text) {
    if (c == '\n' || (c >= ' ' && c <= '~')) clean += c;
  }
  return clean.size() > limit ? clean.substr(clean.size() - limit) : clean;
}

}  // namespace

Worker::Worker(WorkerOptions options) : options_(std::move(options)) {}

Worker::~Worker() = default;

Result<void> Worker::LockRunDir() {
  lock_ = TRY(vmm::OpenFile(options_.run_dir + "/lock", O_RDWR | O_CREAT, 0600));
  const auto locked = vmm::LockFile(lock_.get(), vmm::LockKind::kExclusive);
  if (locked.ok()) return {};
  if (locked.error().code() != Code::kUnavailable) return locked.error();
  return vmm::MakeError(
      Code::kAlreadyExists,
      "another worker runs this virtual machine already (it holds '{}/lock'): stop that one first",
      options_.run_dir);
}

Result<void> Worker::SetUp() {
  loop_ = TRY(vmm::Loop::Create());
  HandleSignals();
  ControlServer::Handler handler = [this](const worker::Request& request,
                                          ControlServer::ReplyFunction reply) {
    OnRequest(request, std::move(reply));
  };
  control_ =
      TRY(ControlServer::Listen(*loop_, options_.run_dir + "/worker.sock", std::move(handler)));
  Board::Callbacks callbacks;
  callbacks.machine.changed = [this] { BroadcastStatus(); };
  callbacks.machine.ended = [this](Code code, std::string reason) {
    OnEnded(code, std::move(reason));
  };
  callbacks.machine.crashed = [this](const vmm::GuestCrashReport& report) { OnCrash(report); };
  callbacks.guest_changed = [this] { BroadcastStatus(); };
  board_ = TRY(Board::Build(options_.config, options_.run_dir, options_.unsupported_without_slat,
                            *loop_, std::move(callbacks)));
  return {};
}

void Worker::HandleSignals() {
  // SIGTERM to a worker is the host going down: the guest is asked, as vmmd would ask it.
  signals_ = vmm::TakeEndSignals();
  (void)loop_->Watch(signals_.get(), EPOLLIN, [this](uint32_t) {
    signalfd_siginfo info;
    if (::read(signals_.get(), &info, sizeof(info)) != static_cast<ssize_t>(sizeof(info))) return;
    spdlog::info("signal {}: asking the guest to shut down", info.ssi_signo);
    OnShutdownRequest({}, [this](const worker::Reply& reply) {
      if (reply.has_failure() && board_)
        (void)board_->machine().TurnOff(Code::kUnavailable,
                                        "turned off by a signal; the guest could not be asked");
    });
  });
}

Result<void> Worker::Run() {
  TRY_VOID(LockRunDir());
  ::unlink((options_.run_dir + "/exit").c_str());
  auto started = SetUp();
  if (started.ok()) started = Begin();
  if (!started.ok()) {
    exit_.set_code(static_cast<uint32_t>(started.error().code()));
    exit_.set_reason(started.error().ToString());
  } else {
    loop_->Run();
    capture_.reset();
    const auto closed = board_->Close();
    if (!closed.ok()) spdlog::error("closing: {}", closed.error().ToString());
  }
  WriteExitRecord();
  if (control_) control_->Drain();
  board_.reset();
  return started;
}

void Worker::WriteExitRecord() {
  exit_.set_realtime_ns(vmm::SystemClock().RealtimeNs());
  const auto written =
      vmm::ReplaceFile(options_.run_dir + "/exit", exit_.SerializeAsString(), 0640);
  if (!written.ok()) spdlog::error("writing the exit record: {}", written.error().ToString());
}

void Worker::OnEnded(Code code, std::string reason) {
  exit_.set_code(static_cast<uint32_t>(code));
  exit_.set_reason(std::move(reason));
  loop_->Stop();
}

void Worker::OnCrash(const vmm::GuestCrashReport& report) {
  worker::GuestCrash* crash = exit_.mutable_crash();
  crash->Clear();
  for (const uint64_t parameter : report.parameters) crash->add_parameters(parameter);
  crash->set_message(Sanitise(report.message, 4096));
  crash->set_realtime_ns(vmm::SystemClock().RealtimeNs());
  KVMBUS_LOG_LIMITED("the guest crashed: P0 {:#x}, {} bytes of message", report.parameters[0],
                     report.message.size());
  BroadcastStatus();
}

worker::Status Worker::MakeStatus() const {
  worker::Status status;
  status.set_vm_id(options_.config.id());
  status.set_pid(static_cast<uint32_t>(::getpid()));
  if (!board_) {
    status.set_state(worker::STARTING);
    return status;
  }
  const vmm::Machine& machine = board_->machine();
  status.set_state(ToProto(machine.state()));
  status.set_reason(machine.reason());
  status.set_uptime_ns(machine.uptime_ns());
  status.set_reboots(machine.reboots());
  status.set_heartbeat(board_->Heartbeat());
  status.set_guest_vmbus_version(board_->VmbusVersion());
  if (exit_.has_crash()) *status.mutable_crash() = exit_.crash();
  status.set_restored(options_.config.saved() && !resumed_);
  status.set_capturing(capture_ != nullptr);
  if (capture_ != nullptr) {
    status.set_capture_done(capture_->done());
    status.set_capture_total(capture_->total());
  }
  return status;
}

void Worker::BroadcastStatus() {
  if (!control_) return;
  worker::Event event;
  *event.mutable_status() = MakeStatus();
  control_->Broadcast(event);
}

void Worker::OnRequest(const worker::Request& request, ControlServer::ReplyFunction reply) {
  using Call = worker::Request;
  worker::Reply answer;
  if (!board_ && request.call_case() != Call::kStatus && request.call_case() != Call::kHello)
    return reply(Failed(Error(Code::kUnavailable, "the virtual machine is still starting")));
  if (capture_ != nullptr && ChangesMachine(request.call_case()))
    return reply(Failed(Error(Code::kFailedPrecondition,
                              "the virtual machine is being saved or checkpointed; wait for the "
                              "end of that")));
  switch (request.call_case()) {
    case Call::kHello:
      answer.mutable_hello()->set_protocol(worker::PROTOCOL_CURRENT);
      *answer.mutable_hello()->mutable_config() = options_.config;
      if (board_) board_->NameChildren(answer.mutable_hello()->mutable_config());
      answer.mutable_hello()->set_names_children(board_ != nullptr);
      *answer.mutable_hello()->mutable_status() = MakeStatus();
      return reply(answer);
    case Call::kStatus:
      *answer.mutable_status() = MakeStatus();
      return reply(answer);
    case Call::kShutdown:
      return OnShutdownRequest(request.shutdown(), std::move(reply));
    case Call::kFreezeGuest:
      return OnFreezeGuest(request.freeze_guest().timeout_ns(), std::move(reply));
    case Call::kThawGuest:
      return board_->ThawGuest([reply](const Result<void>& result) { reply(FromResult(result)); });
    case Call::kTurnOff:
      return reply(FromResult(board_->machine().TurnOff(Code::kOk, "turned off")));
    case Call::kPause:
      return reply(FromResult(board_->machine().Pause()));
    case Call::kResume:
      return reply(FromResult(Resume()));
    case Call::kPulse:
      return reply(FromResult(Pulse(request.pulse().count())));
    case Call::kAttachDisk:
      return OnAttachDisk(request.attach_disk().disk(), std::move(reply));
    case Call::kDetachDisk:
      return OnDetachDisk(request.detach_disk(), std::move(reply));
    case Call::kSetDiskQos:
      return reply(FromResult(SetDiskQos(request.set_disk_qos())));
    case Call::kDiskStatistics:
      *answer.mutable_disk_statistics() = DiskStatistics();
      return reply(answer);
    case Call::kInsertDvd:
      return OnInsertDvd(request.insert_dvd(), std::move(reply));
    case Call::kEjectDvd:
      return OnEjectDvd(request.eject_dvd(), std::move(reply));
    case Call::kResizeDisk:
    case Call::kCreateChild:
    case Call::kMergeDisk:
    case Call::kCancelDiskChange:
    case Call::kFindDisk:
      return OnDiskRequest(request, std::move(reply));
    case Call::kCapture:
      return OnCapture(request.capture(), std::move(reply));
    case Call::kCancelCapture:
      if (capture_ != nullptr) capture_->Cancel();
      return reply({});
    case Call::kCounters: {
      auto& counters = *answer.mutable_counters()->mutable_counters();
      board_->VisitCounters([&](std::string_view name, const vmm::Counter& counter) {
        counters[std::string(name)] = counters[std::string(name)] + counter.value();
      });
      return reply(answer);
    }
    case Call::kDescribe:
      answer.mutable_describe()->set_fdt(board_->fdt());
      return reply(answer);
    case Call::CALL_NOT_SET:
      break;
  }
  reply(Failed(
      Error(Code::kUnimplemented, "this worker does not know the request; it is older than vmmd")));
}

Result<void> Worker::Pulse(uint32_t count) {
  if (count == 0 || count > kPulseLimit)
    return vmm::MakeError(Code::kInvalidArgument, "{} pulses; 1 to {} are allowed", count,
                          kPulseLimit);
  board_->FinishLoading();
  for (uint32_t i = 0; i < count; ++i)
    TRY_VOID_CTX(board_->machine().Pulse(), "pulse {} of {}", i + 1, count);
  return {};
}

void Worker::OnShutdownRequest(const worker::ShutdownRequest& request,
                               ControlServer::ReplyFunction reply) {
  if (!board_)
    return reply(Failed(Error(Code::kUnavailable, "the virtual machine is still starting")));
  board_->RequestShutdown(
      request.restart(), request.force(),
      [reply = std::move(reply)](const Result<void>& result) { reply(FromResult(result)); });
}

void Worker::OnFreezeGuest(uint64_t timeout_ns, ControlServer::ReplyFunction reply) {
  if (timeout_ns == 0 || timeout_ns > kFreezeLimitNs)
    return reply(Failed(vmm::MakeError(Code::kOutOfRange,
                                       "a freeze cannot be waited for that long; 1 to {} s are "
                                       "allowed",
                                       kFreezeLimitNs / 1'000'000'000)));
  board_->FreezeGuest(timeout_ns, [reply = std::move(reply)](const Result<void>& result) {
    reply(FromResult(result));
  });
}

void Worker::OnAttachDisk(const config::Disk& disk, ControlServer::ReplyFunction reply) {
  const auto attached = board_->AttachDisk(disk);
  if (attached.ok()) *options_.config.add_disks() = disk;
  reply(FromResult(attached));
}

void Worker::OnDiskRequest(const worker::Request& request, ControlServer::ReplyFunction reply) {
  const auto done = [this, reply](uint32_t controller, uint32_t lun) {
    return [this, reply, controller, lun](const Result<void>& result) {
      if (!result.ok()) return reply(Failed(result.error()));
      worker::Reply answer;
      answer.mutable_disk_place()->set_path(board_->PathOf(controller, lun));
      NotePath(controller, lun, answer.disk_place().path());
      reply(answer);
    };
  };
  switch (request.call_case()) {
    case worker::Request::kResizeDisk: {
      const auto& call = request.resize_disk();
      return board_->ResizeDisk(call.controller(), call.lun(), call.size_bytes(),
                                done(call.controller(), call.lun()));
    }
    case worker::Request::kCreateChild: {
      const auto& call = request.create_child();
      return board_->CreateChild(call.controller(), call.lun(), call.path(),
                                 done(call.controller(), call.lun()));
    }
    case worker::Request::kMergeDisk: {
      const auto& call = request.merge_disk();
      return board_->MergeDisk(call.controller(), call.lun(), call.layer(),
                               done(call.controller(), call.lun()));
    }
    case worker::Request::kCancelDiskChange: {
      const auto& call = request.cancel_disk_change();
      return reply(FromResult(board_->CancelDiskChange(call.controller(), call.lun())));
    }
    default:
      break;
  }
  const auto place = board_->FindDisk(request.find_disk().path());
  if (!place.ok()) return reply(Failed(place.error()));
  worker::Reply answer;
  *answer.mutable_disk_place() = *place;
  reply(answer);
}

void Worker::OnInsertDvd(const worker::InsertDvdRequest& request,
                         ControlServer::ReplyFunction reply) {
  board_->InsertDvd(request.controller(), request.lun(), request.path(),
                    [this, request, reply = std::move(reply)](const Result<void>& result) {
                      if (result.ok())
                        NotePath(request.controller(), request.lun(), request.path());
                      reply(FromResult(result));
                    });
}

void Worker::OnEjectDvd(const worker::EjectDvdRequest& request,
                        ControlServer::ReplyFunction reply) {
  board_->EjectDvd(request.controller(), request.lun(), request.force(),
                   [this, request, reply = std::move(reply)](const Result<void>& result) {
                     if (result.ok()) NotePath(request.controller(), request.lun(), "");
                     reply(FromResult(result));
                   });
}

void Worker::NotePath(uint32_t controller, uint32_t lun, const std::string& path) {
  for (config::Disk& disk : *options_.config.mutable_disks()) {
    if (disk.controller() == controller && disk.lun() == lun) disk.set_path(path);
  }
}

void Worker::OnDetachDisk(const worker::DetachDiskRequest& request,
                          ControlServer::ReplyFunction reply) {
  const uint32_t controller = request.controller();
  const uint32_t lun = request.lun();
  board_->DetachDisk(controller, lun,
                     [this, controller, lun, reply = std::move(reply)](const Result<void>& result) {
                       if (result.ok()) {
                         auto& disks = *options_.config.mutable_disks();
                         disks.erase(std::remove_if(disks.begin(), disks.end(),
                                                    [&](const config::Disk& disk) {
                                                      return disk.controller() == controller &&
                                                             disk.lun() == lun;
                                                    }),
                                     disks.end());
                       }
                       reply(FromResult(result));
                     });
}

}  // namespace kvmbus::cmd
