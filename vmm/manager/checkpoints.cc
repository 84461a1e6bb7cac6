// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/checkpoints.h"

#include <algorithm>

#include "vmm/os/file.h"
#include "vmm/os/log.h"
#include "vmm/text/utf8.h"

namespace kvmbus::vmm {
namespace {

bool IsOfCheckpoints(config::JobKind kind) {
  return kind == config::CREATE_CHECKPOINT || kind == config::APPLY_CHECKPOINT ||
         kind == config::DELETE_CHECKPOINT;
}

}  // namespace

Checkpoints::Checkpoints(Loop& loop, Inventory& inventory, Jobs& jobs, DiskFiles& files)
    : loop_(loop),
      inventory_(inventory),
      jobs_(jobs),
      files_(files),
      merger_(loop, inventory, jobs, files),
      follower_(loop, inventory, jobs) {
  inventory_.SetImageWorker(&merger_);
  // An automatic checkpoint is for a run that goes wrong.
  const auto tidy = [this](const std::string& vm) {
    const auto view = inventory_.Get(vm);
    if (view.ok() && view->status.clean_stop() && !starting_.contains(vm)) DeleteAutomatic(vm, "");
  };
  subscription_ = inventory_.Subscribe(tidy);
  Recover();
  for (const auto& view : inventory_.List()) tidy(view.config.id());
}

Checkpoints::~Checkpoints() {
  *alive_ = false;
  inventory_.SetImageWorker(nullptr);
}

Result<config::Job> Checkpoints::Begin(config::JobKind kind, const std::string& vm,
                                       const std::string& request_id, const std::string& what) {
  TRY_VOID(inventory_.Reserve(vm, what));
  config::Job job;
  job.set_kind(kind);
  job.set_vm(vm);
  job.set_request_id(request_id);
  auto begun = jobs_.Begin(std::move(job));
  if (!begun.ok()) inventory_.Release(vm);
  return begun;
}

/// Of a VM that nobody runs: children of the disks of `before`, as `next` names them.
void Checkpoints::MakeChildren(const config::Job& job, const config::Vm& before,
                               const config::Vm& next, const Ended& ended) {
  const auto make = [this, before, next]() -> Result<void> {
    for (int i = 0; i < before.disks_size(); ++i) {
      if (IsWritten(before.disks(i)))
        TRY_VOID(files_.CreateChild(before.disks(i).path(), next.disks(i).path()));
    }
    return {};
  };
  file_thread_.Do(make, [this, job, ended](const Result<void>& made) {
    made.ok() ? Commit(job, ended) : Undo(job, made.error(), ended);
  });
}

void Checkpoints::Commit(config::Job job, const Ended& ended) {
  jobs_.SetCancel(job.id(), nullptr);
  Result<void> made;
  // One that an earlier vmmd had committed may be half made: there is no way back.
  if (!job.committed()) {
    job.set_committed(true);
    made = jobs_.Store(job);
    if (!made.ok()) return Undo(job, made.error(), ended);
  }
  made = inventory_.Make(job.change());
  if (made.ok()) return End(job, made, ended);
  // It has to be made, and this vmmd could not: nothing is done to the VM until another one has.
  spdlog::critical("job {}: {}; start vmmd anew when the cause is gone", job.id(),
                   made.error().ToString());
  if (ended) ended(made);
}

void Checkpoints::Undo(config::Job job, const Error& error, const Ended& ended) {
  if (job.kind() == config::CREATE_CHECKPOINT) SettleChildren(&job);
  for (const std::string& file : job.new_files()) {
    const auto removed = RemoveFile(file);
    if (!removed.ok()) spdlog::error("{}", removed.error().ToString());
  }
  End(job, error, ended);
}

void Checkpoints::End(const config::Job& job, const Result<void>& result, const Ended& ended) {
  follower_.Stop(job.id());
  // Of what a later vmmd would do again, nothing else may come in between.
  if (!jobs_.End(job.id(), result)) {
    if (ended) ended(result);
    return;
  }
  inventory_.Release(job.vm());
  merger_.Resume(job.vm());
  if (ended) ended(result);
}

void Checkpoints::Recover() {
  // No disk is merged before it is known what is still being done.
  for (const VmView& view : inventory_.List()) merger_.Suspend(view.config.id(), [] {});
  for (config::Job& job : jobs_.Unfinished()) {
    if (job.kind() == config::MERGE_DISKS) {
      jobs_.End(job.id(), Error(Code::kAborted, "vmmd was restarted; another job goes on with it"));
      continue;
    }
    if (!IsOfCheckpoints(job.kind())) continue;
    if (!inventory_.Get(job.vm()).ok() && job.committed()) {
      // Its folder may not be there yet. What was begun is done when its configuration can be read.
      spdlog::error("job {} waits for its virtual machine, which cannot be read", job.id());
      continue;
    }
    if (!inventory_.Get(job.vm()).ok()) {
      jobs_.End(job.id(), Error(Code::kNotFound, "its virtual machine is not there any more"));
      continue;
    }
    const Error lost(Code::kAborted, "vmmd ended while it was prepared; nothing was changed");
    // It may have waited for a checkpoint, whose job has the machine.
    if (job.kind() == config::APPLY_CHECKPOINT && !job.has_change()) {
      jobs_.End(job.id(), lost);
      continue;
    }
    (void)inventory_.Reserve(job.vm(), "a job of an earlier vmmd is ended");
    merger_.Suspend(job.vm(), [] {});  // until its end
    spdlog::info("job {} ({}) is {}", job.id(), config::JobKind_Name(job.kind()),
                 job.committed() ? "done to its end" : "undone, unless it is whole");
    if (job.committed())
      Commit(job, nullptr);
    else if (job.kind() == config::CREATE_CHECKPOINT && job.has_change())
      AwaitCapture(job);
    else
      Undo(job, lost, nullptr);
  }
  for (const VmView& view : inventory_.List()) merger_.Resume(view.config.id());
}

Result<config::Job> Checkpoints::Delete(const std::string& vm, const std::string& checkpoint,
                                        bool subtree, const std::string& request_id, Ended ended) {
  if (const config::Job* same = jobs_.FindRequest(request_id)) return *same;
  const std::string id = TRY(FindCheckpoint(inventory_.Checkpoints(vm), checkpoint));
  TRY_VOID(inventory_.CheckNotExported(vm));
  return BeginDelete(vm, id, subtree, request_id, std::move(ended));
}

Result<config::Job> Checkpoints::DeleteOwn(const std::string& vm, const std::string& id,
                                           Ended ended) {
  return BeginDelete(vm, id, false, "", std::move(ended));
}

Result<config::Job> Checkpoints::BeginDelete(const std::string& vm, const std::string& id,
                                             bool subtree, const std::string& request_id,
                                             Ended ended) {
  config::Job job =
      TRY(Begin(config::DELETE_CHECKPOINT, vm, request_id, "a checkpoint is being deleted"));
  job.set_checkpoint(id);
  // The end of a merge under way renames disks: what is planned before it would undo that.
  merger_.Suspend(vm, [this, alive = alive_, job, subtree, ended = std::move(ended)] {
    if (*alive) PlanDelete(job, subtree, ended);
  });
  return job;
}

void Checkpoints::PlanDelete(config::Job job, bool subtree, const Ended& ended) {
  const CheckpointMap all = inventory_.Checkpoints(job.vm());
  const auto view = inventory_.Get(job.vm());
  const auto found = all.find(job.checkpoint());
  if (!view.ok() || found == all.end())
    return Undo(job, Error(Code::kNotFound, "the checkpoint is not there any more"), ended);
  config::Vm now = view->config;
  const std::string above = found->second.checkpoint().parent();
  const std::vector<std::string> gone =
      subtree ? SubtreeOf(all, job.checkpoint()) : std::vector{job.checkpoint()};
  const auto is_gone = [&gone](const std::string& which) {
    return std::find(gone.begin(), gone.end(), which) != gone.end();
  };
  // First nobody refers to it any more.
  for (const auto& [other, config] : all) {
    if (is_gone(other) || !is_gone(config.checkpoint().parent())) continue;
    config::Vm moved = config;
    moved.mutable_checkpoint()->set_parent(above);
    *job.mutable_change()->add_store() = std::move(moved);
  }
  if (is_gone(now.parent_checkpoint())) now.set_parent_checkpoint(above);
  for (const std::string& which : gone) {
    *job.mutable_change()->add_remove() = all.at(which);
    for (const config::Disk& disk : all.at(which).disks()) {
      if (IsWritten(disk)) AddUnneeded(&now, disk.path());
    }
  }
  *job.mutable_change()->add_store() = std::move(now);
  Commit(job, ended);
}

Result<void> Checkpoints::Rename(const std::string& vm, const std::string& checkpoint,
                                 const std::string& name) {
  CheckpointMap all = inventory_.Checkpoints(vm);
  const std::string id = TRY(FindCheckpoint(all, checkpoint));
  config::Vm renamed = all.at(id);
  all.erase(id);
  TRY_VOID(CheckNewCheckpoint(all, name));
  renamed.mutable_checkpoint()->set_name(name);
  TRY_VOID(inventory_.Reserve(vm, "a checkpoint is being renamed"));
  const auto stored = inventory_.Store(renamed);
  inventory_.Release(vm);
  return stored;
}

void Checkpoints::Start(const std::string& vm, Ended ended) {
  const auto view = inventory_.Get(vm);
  if (!view.ok() || !view->config.automatic_checkpoints() || view->config.saved() ||
      view->status.pid() != 0)
    return inventory_.Start(vm, std::move(ended));
  CreateOptions options;
  options.vm = vm;
  options.automatic = true;
  options.name =
      "Automatic Checkpoint - " +
      DefaultCheckpointName(view->config.name(), FiletimeOfRealtime(loop_.clock().RealtimeNs()));
  options.name = TruncateUtf8(options.name, kMaxCheckpointNameBytes);
  const auto start = [this, alive = alive_, vm, ended](const Result<void>& made) {
    if (!*alive) return;
    // A machine that does not run is worse than one without a way back.
    if (!made.ok())
      spdlog::warn("'{}' starts without an automatic checkpoint: {}", vm, made.error().ToString());
    inventory_.Start(vm, [this, alive, vm, ended, made](const Result<void>& started) {
      if (*alive) starting_.erase(vm);
      ended(started);
      if (!*alive || !made.ok()) return;
      const auto now = inventory_.Get(vm);
      if (now.ok()) DeleteAutomatic(vm, now->config.parent_checkpoint());
    });
  };
  if (!starting_.insert(vm).second) return inventory_.Start(vm, std::move(ended));  // is refused
  if (const auto made = Create(options, start); !made.ok()) start(made.error());
}

void Checkpoints::DeleteAutomatic(const std::string& vm, const std::string& but) {
  for (const auto& [id, checkpoint] : inventory_.Checkpoints(vm)) {
    if (!checkpoint.checkpoint().automatic() || id == but) continue;
    const auto begun = Delete(vm, id, false, "", [this, alive = alive_, vm, but](const auto& done) {
      if (*alive && done.ok()) DeleteAutomatic(vm, but);
    });
    if (!begun.ok())
      spdlog::info("an automatic checkpoint stays for now: {}", begun.error().ToString());
    return;
  }
}

}  // namespace kvmbus::vmm
