// SPDX-License-Identifier: Apache-2.0
// Applying a checkpoint: the VM becomes what it was, on new children of the checkpoint's disks, so
// that these stay as they are for the next time.
#include <algorithm>

#include "vmm/config/vm_files.h"
#include "vmm/guid/guid.h"
#include "vmm/manager/checkpoints.h"

namespace kvmbus::vmm {
namespace {

bool IsWritten(const config::Disk& disk) {
  return disk.kind() == config::HARD_DISK && !disk.read_only();
}

/// What belongs to the VM and not to a moment of it stays.
config::Vm AsItWas(const config::Vm& now, const config::Vm& checkpoint) {
  config::Vm vm = checkpoint;
  vm.clear_checkpoint();
  vm.set_name(now.name());
  vm.set_folder(now.folder());
  vm.set_version(now.version());
  vm.set_checkpoint_policy(now.checkpoint_policy());
  vm.set_automatic_checkpoints(now.automatic_checkpoints());
  vm.set_parent_checkpoint(checkpoint.checkpoint().id());
  *vm.mutable_unneeded_disks() = now.unneeded_disks();
  // The guest is told that it has been here before.
  const Guid id = Guid::Random();
  vm.set_generation_id(std::string(id.bytes.begin(), id.bytes.end()));
  return vm;
}

void AddLink(config::FileChange* change, const std::string& from, const std::string& to) {
  config::FileLink* link = change->add_links();
  link->set_from(from);
  link->set_to(to);
}

}  // namespace

Result<config::Job> Checkpoints::Apply(const std::string& vm, const std::string& checkpoint,
                                       bool checkpoint_first, const std::string& request_id,
                                       Ended ended) {
  if (const config::Job* same = jobs_.FindRequest(request_id)) return *same;
  const std::string id = TRY(FindCheckpoint(inventory_.Checkpoints(vm), checkpoint));
  if (checkpoint_first) {
    CreateOptions first;
    first.vm = vm;
    return Create(first, [this, alive = alive_, vm, id, request_id,
                          ended = std::move(ended)](const Result<void>& made) {
      if (!*alive) return;
      if (!made.ok()) {
        if (ended) ended(made);
        return;
      }
      const auto applied = Apply(vm, id, false, request_id, ended);
      if (!applied.ok() && ended) ended(applied.error());
    });
  }
  config::Job job =
      TRY(Begin(config::APPLY_CHECKPOINT, vm, request_id, "a checkpoint is being applied"));
  job.set_checkpoint(id);
  merger_.Suspend(vm, [this, alive = alive_, job, ended = std::move(ended)] {
    if (*alive) StartApply(job, ended);
  });
  return job;
}

void Checkpoints::StartApply(const config::Job& job, const Ended& ended) {
  inventory_.TurnOff(job.vm(), [this, alive = alive_, job, ended](const Result<void>& off) {
    if (!*alive) return;
    off.ok() ? PlanApply(job, ended) : Undo(job, off.error(), ended);
  });
}

void Checkpoints::PlanApply(config::Job job, const Ended& ended) {
  const auto view = inventory_.Get(job.vm());
  const CheckpointMap all = inventory_.Checkpoints(job.vm());
  if (!view.ok() || all.count(job.checkpoint()) == 0)
    return Undo(job, Error(Code::kNotFound, "the checkpoint is not there any more"), ended);
  const config::Vm& checkpoint = all.at(job.checkpoint());
  config::Vm next = AsItWas(view->config, checkpoint);
  std::vector<std::pair<std::string, std::string>> children;  // of the first, the second
  for (config::Disk& disk : *next.mutable_disks()) {
    if (!IsWritten(disk)) continue;
    children.emplace_back(disk.path(), NewLeafPath(disk.path()));
    disk.set_path(children.back().second);
    job.add_new_files(disk.path());
  }
  for (const config::Disk& disk : view->config.disks()) {
    if (IsWritten(disk)) AddUnneeded(&next, disk.path());
  }
  config::FileChange& change = *job.mutable_change();
  // Without one, what the VM had saved is gone.
  const std::string state = StateFileOf(next), memory = MemoryFileOf(next);
  AddLink(&change, next.saved() ? StateFileOf(checkpoint) : "", state);
  if (memory != state) AddLink(&change, next.saved() ? MemoryFileOf(checkpoint) : "", memory);
  *change.add_store() = std::move(next);
  const auto kept = jobs_.Store(job);
  if (!kept.ok()) return Undo(job, kept.error(), ended);
  const auto make = [this, children]() -> Result<void> {
    for (const auto& [parent, child] : children) TRY_VOID(files_.CreateChild(parent, child));
    return {};
  };
  OnFiles(make, [this, job, ended](const Result<void>& made) {
    made.ok() ? Commit(job, ended) : Undo(job, made.error(), ended);
  });
}

}  // namespace kvmbus::vmm
