// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmmd/api_service.h"

#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "api/vmms.grpc.pb.h"
#include "cmd/vmmd/api_call.h"
#include "cmd/vmmd/checkpoints_service.h"
#include "cmd/vmmd/disks_service.h"
#include "cmd/vmmd/transfers_service.h"
#include "vmm/config/versions.h"

namespace kvmbus::cmd {
namespace {

namespace api = kvmbus::api::v1;
using vmm::Code;
using vmm::Error;
using vmm::Inventory;
using vmm::Result;

constexpr uint64_t kCallTimeoutNs = 60'000'000'000;
constexpr uint64_t kPulseTimeoutNs = 600'000'000'000;
constexpr uint32_t kDefaultWaitSeconds = 300;
constexpr uint32_t kDefaultFreezeSeconds = 30;

void Fill(const vmm::VmView& view, api::VmStatus* status) {
  *status->mutable_config() = view.config;
  status->set_state(view.status.state());
  status->set_reason(view.status.reason());
  status->set_uptime_ns(view.status.uptime_ns());
  status->set_heartbeat(view.status.heartbeat());
  status->set_integration_version(view.status.guest_vmbus_version());
  if (view.status.has_crash()) *status->mutable_crash() = view.status.crash();
  status->set_reboots(view.status.reboots());
  status->set_worker_pid(view.status.pid());
}

/// Off or Saved: no worker.
bool IsAtRest(const api::VmStatus& status) {
  return status.state() == worker::OFF || status.state() == worker::SAVED;
}

/// Wakes a waiting call whenever a VM's status changes.
class ChangeSignal {
 public:
  void Raise() {
    std::lock_guard lock(mutex_);
    ++count_;
    changed_.notify_all();
  }
  uint64_t count() {
    std::lock_guard lock(mutex_);
    return count_;
  }
  void WaitPast(uint64_t seen, std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, limit, [&] { return count_ != seen; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t count_ = 0;
};

}  // namespace

class ApiServer::VirtualMachinesService final : public api::VirtualMachines::Service {
 public:
  VirtualMachinesService(vmm::Loop& loop, Inventory& inventory, vmm::Checkpoints& checkpoints,
                         vmm::StateJobs& state_jobs)
      : loop_(loop), inventory_(inventory), checkpoints_(checkpoints), state_jobs_(state_jobs) {}

  grpc::Status CreateVm(grpc::ServerContext*, const api::CreateVmRequest* request,
                        api::VmStatus* reply) override {
    return OnLoop(loop_, [&]() -> Result<void> {
      const std::string id = TRY(inventory_.Create(request->config()));
      Fill(TRY(inventory_.Get(id)), reply);
      return {};
    });
  }

  grpc::Status ListVms(grpc::ServerContext*, const api::Empty*, api::ListVmsReply* reply) override {
    return OnLoop(loop_, [&]() -> Result<void> {
      for (const vmm::VmView& view : inventory_.List()) Fill(view, reply->add_vms());
      return {};
    });
  }

  grpc::Status GetVm(grpc::ServerContext*, const api::VmReference* request,
                     api::VmStatus* reply) override {
    return OnLoop(loop_, [&]() -> Result<void> { return FillStatus(request->vm(), reply); });
  }

  grpc::Status StartVm(grpc::ServerContext*, const api::VmReference* request,
                       api::VmStatus* reply) override {
    return Act(request->vm(), reply, [this](const std::string& id, Inventory::Done done) {
      checkpoints_.Start(id, std::move(done));
    });
  }

  grpc::Status TurnOffVm(grpc::ServerContext*, const api::VmReference* request,
                         api::VmStatus* reply) override {
    return Act(request->vm(), reply, [this](const std::string& id, Inventory::Done done) {
      inventory_.TurnOff(id, std::move(done));
    });
  }

  grpc::Status DeleteVm(grpc::ServerContext*, const api::VmReference* request,
                        api::Empty*) override {
    return OnLoop(loop_, [&]() -> Result<void> {
      const std::string id = TRY(inventory_.Resolve(request->vm()));
      return inventory_.Delete(id);
    });
  }

  grpc::Status UpgradeVm(grpc::ServerContext*, const api::UpgradeVmRequest* request,
                         config::Job* reply) override {
    return OnLoop(loop_, [&]() -> Result<void> {
      const std::string id = TRY(inventory_.Resolve(request->vm()));
      *reply = Shown(
          TRY(state_jobs_.Upgrade(id, request->discard_saved_states(), request->request_id())));
      return {};
    });
  }

  grpc::Status StopVm(grpc::ServerContext* context, const api::StopVmRequest* request,
                      grpc::ServerWriter<api::Progress>* writer) override {
    api::VmStatus status;
    const auto report = [&](const std::string& message) {
      api::Progress progress;
      progress.set_message(message);
      *progress.mutable_status() = status;
      return writer->Write(progress);
    };
    if (const auto got = OnLoop(loop_, [&] { return FillStatus(request->vm(), &status); });
        !got.ok())
      return got;
    if (IsAtRest(status)) return report("it is off already"), grpc::Status::OK;
    const uint32_t reboots = status.reboots();
    report("asking the guest");
    const grpc::Status asked =
        Act(request->vm(), &status, [&](const std::string& id, Inventory::Done done) {
          inventory_.Shutdown(id, request->restart(), request->force(), std::move(done));
        });
    if (!asked.ok()) return asked;
    report("the guest has accepted; waiting for it to finish");
    const auto over = [&](const api::VmStatus& now) {
      return IsAtRest(now) || (request->restart() && now.reboots() != reboots);
    };
    const uint32_t seconds =
        request->timeout_seconds() == 0 ? kDefaultWaitSeconds : request->timeout_seconds();
    const grpc::Status waited =
        WaitUntil(context, request->vm(), seconds, over, &status, [&](uint32_t waited_seconds) {
          return report(fmt::format("still waiting after {} s", waited_seconds));
        });
    if (waited.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED)
      return grpc::Status(waited.error_code(),
                          fmt::format("'{}' accepted the request but is not off after {} s; wait "
                                      "longer with --timeout, or use 'vmctl vm turn-off'",
                                      status.config().name(), seconds));
    if (!waited.ok()) return waited;
    report(request->restart() && !IsAtRest(status) ? "restarted" : "off");
    return grpc::Status::OK;
  }

  grpc::Status WaitVm(grpc::ServerContext* context, const api::WaitVmRequest* request,
                      api::VmStatus* reply) override {
    const std::string& condition = request->condition();
    if (condition != "running" && condition != "off" && condition != "heartbeat")
      return ToStatus(vmm::MakeError(Code::kInvalidArgument,
                                     "cannot wait for '{}'; there are running, off and heartbeat",
                                     condition));
    const auto met = [&](const api::VmStatus& now) {
      if (condition == "off") return IsAtRest(now);
      if (condition == "running") return now.state() == worker::RUNNING;
      return now.state() == worker::RUNNING && now.heartbeat() == "OK";
    };
    const uint32_t seconds =
        request->timeout_seconds() == 0 ? kDefaultWaitSeconds : request->timeout_seconds();
    return WaitUntil(context, request->vm(), seconds, met, reply, [](uint32_t) { return true; });
  }

  grpc::Status PauseVm(grpc::ServerContext*, const api::VmReference* request,
                       api::VmStatus* reply) override {
    worker::Request call;
    call.mutable_pause();
    return CallWorker(request->vm(), std::move(call), kCallTimeoutNs, reply);
  }
  grpc::Status ResumeVm(grpc::ServerContext*, const api::VmReference* request,
                        api::VmStatus* reply) override {
    worker::Request call;
    call.mutable_resume();
    return CallWorker(request->vm(), std::move(call), kCallTimeoutNs, reply);
  }
  grpc::Status PulseVm(grpc::ServerContext*, const api::PulseVmRequest* request,
                       api::VmStatus* reply) override {
    worker::Request call;
    call.mutable_pulse()->set_count(request->count());
    return CallWorker(request->vm(), std::move(call), kPulseTimeoutNs, reply);
  }

  grpc::Status SaveVm(grpc::ServerContext*, const api::SaveVmRequest* request,
                      config::Job* reply) override {
    return OnLoop(loop_, [&]() -> Result<void> {
      const std::string id = TRY(inventory_.Resolve(request->vm()));
      *reply = Shown(TRY(state_jobs_.Save(id, request->compress(), request->request_id())));
      return {};
    });
  }
  grpc::Status DiscardSavedState(grpc::ServerContext*, const api::VmReference* request,
                                 api::VmStatus* reply) override {
    return Act(request->vm(), reply, [this](const std::string& id, const Inventory::Done& done) {
      done(inventory_.DiscardSaved(id));
    });
  }

  grpc::Status FreezeVm(grpc::ServerContext*, const api::FreezeVmRequest* request,
                        api::VmStatus* reply) override {
    const uint64_t seconds =
        request->timeout_seconds() == 0 ? kDefaultFreezeSeconds : request->timeout_seconds();
    worker::Request call;
    call.mutable_freeze_guest()->set_timeout_ns(seconds * 1'000'000'000);
    return CallWorker(request->vm(), std::move(call), seconds * 1'000'000'000 + kCallTimeoutNs,
                      reply);
  }
  grpc::Status ThawVm(grpc::ServerContext*, const api::VmReference* request,
                      api::VmStatus* reply) override {
    worker::Request call;
    call.mutable_thaw_guest();
    return CallWorker(request->vm(), std::move(call), kCallTimeoutNs, reply);
  }

  grpc::Status AttachDisk(grpc::ServerContext*, const api::AttachDiskRequest* request,
                          api::VmStatus* reply) override {
    return Act(request->vm(), reply, [&](const std::string& id, Inventory::Done done) {
      inventory_.AttachDisk(id, request->disk(), std::move(done));
    });
  }
  grpc::Status DetachDisk(grpc::ServerContext*, const api::DetachDiskRequest* request,
                          api::VmStatus* reply) override {
    return Act(request->vm(), reply, [&](const std::string& id, Inventory::Done done) {
      inventory_.DetachDisk(id, request->controller(), request->lun(), std::move(done));
    });
  }

  grpc::Status SetDiskQos(grpc::ServerContext*, const api::SetDiskQosRequest* request,
                          api::VmStatus* reply) override {
    return Act(request->vm(), reply, [&](const std::string& id, Inventory::Done done) {
      inventory_.SetDiskQos(id, request->controller(), request->lun(), request->change(),
                            std::move(done));
    });
  }
  grpc::Status GetDiskStatistics(grpc::ServerContext*, const api::VmReference* request,
                                 api::DiskStatisticsReply* reply) override {
    worker::Request call;
    call.mutable_disk_statistics();
    const auto answer = Ask(request->vm(), std::move(call), kCallTimeoutNs);
    if (!answer.ok()) return ToStatus(answer.error());
    *reply->mutable_disks() = answer->disk_statistics().disks();
    return grpc::Status::OK;
  }

  grpc::Status InsertDvd(grpc::ServerContext*, const api::InsertDvdRequest* request,
                         api::VmStatus* reply) override {
    return Act(request->vm(), reply, [&](const std::string& id, Inventory::Done done) {
      inventory_.InsertDvd(id, request->controller(), request->lun(), request->path(),
                           std::move(done));
    });
  }
  grpc::Status EjectDvd(grpc::ServerContext*, const api::EjectDvdRequest* request,
                        api::VmStatus* reply) override {
    return Act(request->vm(), reply, [&](const std::string& id, Inventory::Done done) {
      inventory_.EjectDvd(id, request->controller(), request->lun(), request->force(),
                          std::move(done));
    });
  }

  grpc::Status GetCounters(grpc::ServerContext*, const api::VmReference* request,
                           api::CountersReply* reply) override {
    worker::Request call;
    call.mutable_counters();
    const auto answer = Ask(request->vm(), std::move(call), kCallTimeoutNs);
    if (!answer.ok()) return ToStatus(answer.error());
    for (const auto& [name, value] : answer->counters().counters())
      (*reply->mutable_counters())[name] = value;
    return grpc::Status::OK;
  }
  grpc::Status DescribeVm(grpc::ServerContext*, const api::VmReference* request,
                          api::DescribeVmReply* reply) override {
    worker::Request call;
    call.mutable_describe();
    const auto answer = Ask(request->vm(), std::move(call), kCallTimeoutNs);
    if (!answer.ok()) return ToStatus(answer.error());
    reply->set_fdt(answer->describe().fdt());
    return grpc::Status::OK;
  }

 private:
  Result<void> FillStatus(const std::string& vm, api::VmStatus* status) {
    status->Clear();
    const std::string id = TRY(inventory_.Resolve(vm));
    Fill(TRY(inventory_.Get(id)), status);
    return {};
  }

  /// An action of the inventory that answers later; then the VM's status.
  template <typename Action>
  grpc::Status Act(const std::string& vm, api::VmStatus* reply, Action action) {
    auto promise = std::make_shared<Promise<Result<void>>>();
    loop_.Post([&, promise] {
      const auto id = inventory_.Resolve(vm);
      if (!id.ok()) return promise->Set(id.error());
      action(*id, [promise](const Result<void>& result) { promise->Set(result); });
    });
    const Result<void> result = promise->Wait();
    if (!result.ok()) return ToStatus(result);
    return OnLoop(loop_, [&]() -> Result<void> {
      (void)FillStatus(vm, reply);
      return {};
    });
  }

  Result<worker::Reply> Ask(const std::string& vm, worker::Request call, uint64_t timeout_ns) {
    auto promise = std::make_shared<Promise<Result<worker::Reply>>>();
    loop_.Post([&, promise] {
      const auto id = inventory_.Resolve(vm);
      if (!id.ok()) return promise->Set(id.error());
      inventory_.Call(*id, std::move(call), timeout_ns,
                      [promise](const Result<worker::Reply>& reply) { promise->Set(reply); });
    });
    return promise->Wait();
  }

  grpc::Status CallWorker(const std::string& vm, worker::Request call, uint64_t timeout_ns,
                          api::VmStatus* reply) {
    const auto answer = Ask(vm, std::move(call), timeout_ns);
    if (!answer.ok()) return ToStatus(answer.error());
    return OnLoop(loop_, [&] { return FillStatus(vm, reply); });
  }

  template <typename Condition, typename Report>
  grpc::Status WaitUntil(grpc::ServerContext* context, const std::string& vm, uint32_t seconds,
                         Condition met, api::VmStatus* status, Report report) {
    auto signal = std::make_shared<ChangeSignal>();
    Inventory::Subscription subscription;
    loop_.PostAndWait([&] {
      subscription = inventory_.Subscribe([signal](const std::string&) { signal->Raise(); });
    });
    const auto start = std::chrono::steady_clock::now();
    auto reported = start;
    grpc::Status result;
    for (;;) {
      const uint64_t seen = signal->count();
      result = OnLoop(loop_, [&] { return FillStatus(vm, status); });
      const auto now = std::chrono::steady_clock::now();
      if (!result.ok() || met(*status)) break;
      const auto waited = std::chrono::duration_cast<std::chrono::seconds>(now - start);
      if (waited.count() >= seconds) {
        result = ToStatus(
            vmm::MakeError(Code::kDeadlineExceeded, "'{}' did not get there in {} s (it is {})",
                           status->config().name(), seconds, worker::State_Name(status->state())));
        break;
      }
      if (context->IsCancelled()) {
        result = grpc::Status::CANCELLED;
        break;
      }
      if (now - reported >= std::chrono::seconds(5)) {
        reported = now;
        if (!report(static_cast<uint32_t>(waited.count()))) break;
      }
      signal->WaitPast(seen, std::chrono::milliseconds(500));
    }
    loop_.PostAndWait([&] { subscription.reset(); });
    return result;
  }

  vmm::Loop& loop_;
  Inventory& inventory_;
  vmm::Checkpoints& checkpoints_;
  vmm::StateJobs& state_jobs_;
};

class ApiServer::HostService final : public api::Host::Service {
 public:
  explicit HostService(Inventory& inventory) : inventory_(inventory) {}
  grpc::Status CheckHost(grpc::ServerContext*, const api::Empty*,
                         api::CheckHostReply* reply) override {
    for (const vmm::HostRequirement& need : inventory_.CheckHost()) {
      api::HostRequirement* out = reply->add_requirements();
      out->set_name(need.name);
      out->set_found(need.found);
      out->set_needed(need.needed);
      out->set_ok(need.ok);
      out->set_remedy(need.remedy);
    }
    return grpc::Status::OK;
  }
  grpc::Status GetVersion(grpc::ServerContext*, const api::Empty*,
                          api::VersionReply* reply) override {
    reply->set_version(KVMBUS_VERSION);
    return grpc::Status::OK;
  }
  grpc::Status ListVersions(grpc::ServerContext*, const api::Empty*,
                            api::VersionsReply* reply) override {
    for (const char* version : vmm::kRunningVersions) reply->add_running(version);
    reply->set_default_version(vmm::kDefaultVersion);
    reply->set_newest_compared(vmm::kNewestReadVersion);
    return grpc::Status::OK;
  }

 private:
  Inventory& inventory_;
};

ApiServer::ApiServer() = default;

ApiServer::~ApiServer() {
  if (server_) server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
}

Result<std::unique_ptr<ApiServer>> ApiServer::Listen(const Parts& parts,
                                                     const std::string& socket) {
  auto& [loop, inventory, checkpoints, transfers, state_jobs, jobs] = parts;
  std::unique_ptr<ApiServer> self(new ApiServer());
  self->machines_ =
      std::make_unique<VirtualMachinesService>(loop, inventory, checkpoints, state_jobs);
  self->host_ = std::make_unique<HostService>(inventory);
  self->disks_ = MakeDisksService(loop, inventory);
  self->checkpoints_ = MakeCheckpointsService(loop, inventory, checkpoints);
  self->transfers_ = MakeTransfersService(loop, inventory, transfers);
  self->jobs_ = MakeJobsService(loop, jobs);
  ::unlink(socket.c_str());
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
  builder.RegisterService(self->machines_.get());
  builder.RegisterService(self->host_.get());
  builder.RegisterService(self->disks_.get());
  builder.RegisterService(self->checkpoints_.get());
  builder.RegisterService(self->transfers_.get());
  builder.RegisterService(self->jobs_.get());
  const mode_t before = ::umask(0117);  // the socket is born with 0660
  self->server_ = builder.BuildAndStart();
  ::umask(before);
  if (!self->server_) return vmm::MakeError(Code::kUnavailable, "cannot listen on '{}'", socket);
  return self;
}

}  // namespace kvmbus::cmd
