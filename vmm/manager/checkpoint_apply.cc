// SPDX-License-Identifier: Apache-2.0
// Applying a checkpoint: the VM becomes what it was, on new children of the checkpoint's disks, so
// that these stay as they are for the next time.
#include "vmm/guid/guid.h"
#include "vmm/manager/checkpoint_plan.h"
#include "vmm/manager/checkpoints.h"

namespace kvmbus::vmm {
namespace {

constexpr char kApplying[] = "a checkpoint is being applied";

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
  vm.clear_merging();
  if (now.has_merging()) *vm.mutable_merging() = now.merging();
  if (now.has_smbios()) *vm.mutable_smbios() = now.smbios();
  // The guest is told that it has been here before.
  vm.set_generation_id(Guid::Random().ToBytes());
  return vm;
}

}  // namespace

Result<config::Job> Checkpoints::Apply(const std::string& vm, const std::string& checkpoint,
                                       bool checkpoint_first, const std::string& request_id,
                                       Ended ended) {
  if (const config::Job* same = jobs_.FindRequest(request_id)) return *same;
  const std::string id = TRY(FindCheckpoint(inventory_.Checkpoints(vm), checkpoint));
  if (checkpoint_first) return ApplyAfterCreate(vm, id, request_id, std::move(ended));
  config::Job job = TRY(Begin(config::APPLY_CHECKPOINT, vm, request_id, kApplying));
  job.set_checkpoint(id);
  AwaitMerger(job, ended);
  return job;
}

/// One job of both: who waits for it waits for the last of them.
Result<config::Job> Checkpoints::ApplyAfterCreate(const std::string& vm,
                                                  const std::string& checkpoint,
                                                  const std::string& request_id, Ended ended) {
  config::Job job;
  job.set_kind(config::APPLY_CHECKPOINT);
  job.set_vm(vm);
  job.set_request_id(request_id);
  job.set_checkpoint(checkpoint);
  CreateOptions first;
  first.vm = vm;
  return BeginWithCreate(
      std::move(job), first,
      [this, ended = std::move(ended)](const config::Job& begun, const Result<void>& made) {
        const auto reserved = made.ok() ? inventory_.Reserve(begun.vm(), kApplying) : made;
        if (reserved.ok()) return AwaitMerger(begun, ended);
        jobs_.End(begun.id(), reserved);
        if (ended) ended(reserved);
      });
}

void Checkpoints::AwaitMerger(const config::Job& job, const Ended& ended) {
  merger_.Suspend(job.vm(), [this, alive = alive_, job, ended] {
    if (*alive) StartApply(job, ended);
  });
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
  config::Vm next = OnChildren(AsItWas(view->config, checkpoint), job.mutable_new_files());
  for (const config::Disk& disk : view->config.disks()) {
    if (IsWritten(disk)) AddUnneeded(&next, disk.path());
  }
  // Without one in the checkpoint, what the VM had saved is gone.
  PlanSavedState(next.saved() ? &checkpoint : nullptr, next, job.mutable_change());
  *job.mutable_change()->add_store() = next;
  const auto kept = jobs_.Store(job);
  if (!kept.ok()) return Undo(job, kept.error(), ended);
  MakeChildren(job, checkpoint, next, ended);
}

}  // namespace kvmbus::vmm
