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
  inventory_.Save(vm, compress, [this, alive = alive_, id = job.id()](const Result<void>& saved) {
    if (*alive) End(id, saved);
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
    if (job.kind() != config::SAVE_VM) continue;
    follower_.AwaitEnd(job.id(), job.vm(), [this, job] { Settle(job); });
  }
}

/// By what has become of the machine.
void StateJobs::Settle(const config::Job& job) {
  const auto view = inventory_.Get(job.vm());
  if (!view.ok()) return End(job.id(), view.error());
  const bool is_done = job.kind() == config::SAVE_VM ? view->status.state() == worker::SAVED
                                                     : view->config.version() != kVersion50;
  End(job.id(), is_done ? Result<void>()
                        : Error(Code::kAborted,
                                "vmmd ended in the middle of it; the virtual "
                                "machine is what it was, or has ended"));
}

}  // namespace kvmbus::vmm
