// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmmd/checkpoints_service.h"

#include <thread>

#include "api/vmms.grpc.pb.h"
#include "cmd/vmmd/api_call.h"

namespace kvmbus::cmd {
namespace {

namespace api = kvmbus::api::v1;
using vmm::Checkpoints;
using vmm::Result;

/// Calls run on gRPC's threads and are answered on the loop.
class CheckpointsService final : public api::Checkpoints::Service {
 public:
  CheckpointsService(vmm::Loop& loop, vmm::Inventory& inventory, Checkpoints& checkpoints)
      : loop_(loop), inventory_(inventory), checkpoints_(checkpoints) {}

  grpc::Status CreateCheckpoint(grpc::ServerContext*, const api::CreateCheckpointRequest* request,
                                config::Job* reply) override {
    return ForVm(request->vm(), [&](const std::string& id) -> Result<void> {
      Checkpoints::CreateOptions options;
      options.vm = id;
      options.name = request->name();
      options.request_id = request->request_id();
      options.compress = request->compress();
      if (request->kind() == api::STANDARD_CHECKPOINT)
        options.kind = Checkpoints::Kind::kStandard;
      else if (request->kind() == api::PRODUCTION_CHECKPOINT)
        options.kind = Checkpoints::Kind::kProduction;
      *reply = Shown(TRY(checkpoints_.Create(options, nullptr)));
      return {};
    });
  }

  grpc::Status ApplyCheckpoint(grpc::ServerContext*, const api::ApplyCheckpointRequest* request,
                               config::Job* reply) override {
    return ForVm(request->vm(), [&](const std::string& id) -> Result<void> {
      *reply = Shown(TRY(checkpoints_.Apply(id, request->checkpoint(), request->checkpoint_first(),
                                            request->request_id(), nullptr)));
      return {};
    });
  }

  grpc::Status DeleteCheckpoint(grpc::ServerContext*, const api::DeleteCheckpointRequest* request,
                                config::Job* reply) override {
    return ForVm(request->vm(), [&](const std::string& id) -> Result<void> {
      *reply = Shown(TRY(checkpoints_.Delete(id, request->checkpoint(), request->subtree(),
                                             request->request_id(), nullptr)));
      return {};
    });
  }

  grpc::Status RenameCheckpoint(grpc::ServerContext*, const api::RenameCheckpointRequest* request,
                                api::Empty*) override {
    return ForVm(request->vm(), [&](const std::string& id) {
      return checkpoints_.Rename(id, request->checkpoint(), request->name());
    });
  }

  grpc::Status ListCheckpoints(grpc::ServerContext*, const api::VmReference* request,
                               api::ListCheckpointsReply* reply) override {
    return ForVm(request->vm(), [&](const std::string& id) -> Result<void> {
      const std::string current = TRY(inventory_.Get(id)).config.parent_checkpoint();
      const vmm::CheckpointMap all = inventory_.Checkpoints(id);
      for (const auto& [checkpoint, depth] : vmm::InTreeOrder(all)) {
        api::CheckpointEntry* entry = reply->add_checkpoints();
        *entry->mutable_config() = all.at(checkpoint);
        entry->set_depth(static_cast<uint32_t>(depth));
        entry->set_current(checkpoint == current);
      }
      return {};
    });
  }

  grpc::Status SetCheckpointPolicy(grpc::ServerContext*,
                                   const api::SetCheckpointPolicyRequest* request,
                                   api::VmStatus* reply) override {
    return ForVm(request->vm(), [&](const std::string& id) -> Result<void> {
      TRY_VOID(inventory_.Reserve(id, "its settings are being changed"));
      config::Vm vm = inventory_.Get(id)->config;
      if (request->has_policy()) vm.set_checkpoint_policy(request->policy());
      if (request->has_automatic()) vm.set_automatic_checkpoints(request->automatic());
      const auto stored = inventory_.Store(vm);
      inventory_.Release(id);
      *reply->mutable_config() = std::move(vm);
      return stored;
    });
  }

 private:
  template <typename Function>
  grpc::Status ForVm(const std::string& vm, Function function) {
    return OnLoop(loop_, [&]() -> Result<void> { return function(TRY(inventory_.Resolve(vm))); });
  }

  vmm::Loop& loop_;
  vmm::Inventory& inventory_;
  Checkpoints& checkpoints_;
};

class JobsService final : public api::Jobs::Service {
 public:
  JobsService(vmm::Loop& loop, vmm::Jobs& jobs) : loop_(loop), jobs_(jobs) {}

  grpc::Status ListJobs(grpc::ServerContext*, const api::Empty*,
                        api::ListJobsReply* reply) override {
    loop_.PostAndWait([&] {
      for (const config::Job& job : jobs_.List()) *reply->add_jobs() = Shown(job);
    });
    return grpc::Status::OK;
  }

  grpc::Status GetJob(grpc::ServerContext*, const api::JobReference* request,
                      config::Job* reply) override {
    return OnLoop(loop_, [&] { return Read(request->id(), reply); });
  }

  grpc::Status FollowJob(grpc::ServerContext* context, const api::JobReference* request,
                         grpc::ServerWriter<config::Job>* writer) override {
    constexpr std::chrono::milliseconds kInterval(20), kSlowInterval(300);
    for (int turn = 0; !context->IsCancelled(); ++turn) {
      config::Job job;
      Result<void> result;
      loop_.PostAndWait([&] { result = Read(request->id(), &job); });
      if (!result.ok()) return ToStatus(result);
      if (!writer->Write(job) || job.state() != config::JOB_RUNNING) return grpc::Status::OK;
      std::this_thread::sleep_for(turn < 25 ? kInterval : kSlowInterval);
    }
    return grpc::Status::CANCELLED;
  }

  grpc::Status CancelJob(grpc::ServerContext*, const api::JobReference* request,
                         api::Empty*) override {
    return OnLoop(loop_, [&] { return jobs_.Cancel(request->id()); });
  }

 private:
  Result<void> Read(const std::string& id, config::Job* job) const {
    *job = Shown(TRY(jobs_.Get(id)));
    return {};
  }

  vmm::Loop& loop_;
  vmm::Jobs& jobs_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeCheckpointsService(vmm::Loop& loop, vmm::Inventory& inventory,
                                                      Checkpoints& checkpoints) {
  return std::make_unique<CheckpointsService>(loop, inventory, checkpoints);
}

std::unique_ptr<grpc::Service> MakeJobsService(vmm::Loop& loop, vmm::Jobs& jobs) {
  return std::make_unique<JobsService>(loop, jobs);
}

}  // namespace kvmbus::cmd
