// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/state_jobs.h"

#include "vmm/config/versions.h"

namespace kvmbus::vmm {

StateJobs::StateJobs(Loop& loop, Inventory& inventory, Jobs& jobs)
    : inventory_(inventory), jobs_(jobs), follower_(loop, inventory, jobs) {
  Recover();
}

StateJobs::~StateJobs() { *alive_ = false; }

Result<config::Job> StateJobs::Begin(config::JobKind kind, const std::string& vm,
                                     const std::string& request_id) {
  config::Job job;
  job.set_kind(kind);
  job.set_vm(vm);
  job.set_request_id(request_id);
  return jobs_.Begin(std::move(job));
}

void StateJobs::End(const std::string& job, const Result<void>& result) {
  follower_.Stop(job);
  jobs_.End(job, result);
}

Result<config::Job> StateJobs::Save(const std::string& vm, bool compress,
                                    const std::string& request_id) {
  if (const config::Job* same = jobs_.FindRequest(request_id)) return *same;
  const config::Job job = TRY(Begin(config::SAVE_VM, vm, request_id));
  follower_.Follow(job.id(), vm);
  inventory_.Save(vm, compress, [this, alive = alive_, job](const Result<void>& saved) {
    if (!*alive) return;
    // Nobody has heard from the worker how it went.
    if (!saved.ok() && (saved.error().code() == Code::kUnavailable ||
                        saved.error().code() == Code::kDeadlineExceeded))
      return AwaitSave(job);
    End(job.id(), saved);
  });
  return jobs_.Get(job.id());
}

Result<config::Job> StateJobs::Upgrade(const std::string& vm, bool discard_saved_states,
                                       const std::string& request_id) {
  if (const config::Job* same = jobs_.FindRequest(request_id)) return *same;
  const config::Job job = TRY(Begin(config::UPGRADE_VM, vm, request_id));
  End(job.id(), inventory_.Upgrade(vm, discard_saved_states));
  return jobs_.Get(job.id());
}

void StateJobs::Recover() {
  for (const config::Job& job : jobs_.Unfinished()) {
    if (job.kind() == config::UPGRADE_VM) Settle(job);
    if (job.kind() == config::SAVE_VM) AwaitSave(job);
  }
}

/// Of one whose worker has it, or has had it.
void StateJobs::AwaitSave(const config::Job& job) {
  const bool reserved = inventory_.Reserve(job.vm(), "it is being saved").ok();
  follower_.AwaitEnd(job.id(), job.vm(), [this, job, reserved] {
    if (reserved) inventory_.Release(job.vm());
    Settle(job);
  });
}

/// By what has become of the machine.
void StateJobs::Settle(const config::Job& job) {
  const auto view = inventory_.Get(job.vm());
  if (!view.ok()) return End(job.id(), view.error());
  const bool is_done = job.kind() == config::SAVE_VM ? view->status.state() == worker::SAVED
                                                     : view->config.version() != kVersion50;
  End(job.id(), is_done ? Result<void>()
                        : Error(Code::kAborted,
                                "vmmd or the worker was gone in the middle of it; the "
                                "virtual machine is what it was, or has ended"));
}

}  // namespace kvmbus::vmm
