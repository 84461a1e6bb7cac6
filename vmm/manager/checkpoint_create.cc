// SPDX-License-Identifier: Apache-2.0
// Making a checkpoint. Of a VM without a worker it is a matter of files. A worker takes it at one
// instant; which of the two there was, the files say: each disk's child is there from that instant
// on, and the saved state, if there is to be one, when it is whole. So a checkpoint whose children
// and state are there is one, whoever of us ended in between.
#include <algorithm>

#include "vmm/config/vm_files.h"
#include "vmm/guid/guid.h"
#include "vmm/manager/checkpoint_plan.h"
#include "vmm/manager/checkpoints.h"
#include "vmm/manager/inventory_record.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"
#include "vmm/text/letter_case.h"

namespace kvmbus::vmm {
namespace {

constexpr uint64_t kCaptureTimeoutNs = 24ull * 3600 * 1'000'000'000;
constexpr uint64_t kFreezeTimeoutNs = 60'000'000'000;
constexpr uint64_t kCallTimeoutNs = 30'000'000'000;

Result<void> CheckDisks(const config::Vm& vm) {
  for (const config::Disk& disk : vm.disks()) {
    if (disk.shared())
      return MakeError(Code::kFailedPrecondition,
                       "'{}': disk '{}' is shared with other virtual machines: there are no "
                       "checkpoints of it",
                       vm.name(), disk.path());
    if (!disk.next().empty())
      return MakeError(Code::kFailedPrecondition, "'{}': a child of disk '{}' is being made",
                       vm.name(), disk.path());
  }
  return {};
}

/// It may be none that the worker gave: a capture that nobody waits for any more may go on.
bool MayGoOn(const Error& error) {
  return error.code() == Code::kDeadlineExceeded || error.code() == Code::kUnavailable;
}

/// A whole checkpoint of which only its files tell. The guest may have thawed before its disks were
/// taken: whoever would have asked it is gone.
config::Job AsFound(config::Job job) {
  config::Checkpoint* about = job.mutable_change()->mutable_store(1)->mutable_checkpoint();
  if (!about->production()) return job;
  spdlog::warn(
      "checkpoint '{}' is kept as a crash would leave the disks, and not as a production "
      "one: vmmd ended before it heard whether the guest was frozen to its end",
      about->name());
  about->set_production(false);
  return job;
}

}  // namespace

Result<config::Job> Checkpoints::Create(const CreateOptions& options, Ended ended) {
  if (const config::Job* same = jobs_.FindRequest(options.request_id)) return *same;
  const VmView view = TRY(inventory_.Get(options.vm));
  const config::Vm& vm = view.config;
  if (vm.checkpoint_policy() == config::DISABLED && !options.temporary)
    return MakeError(Code::kFailedPrecondition,
                     "checkpoints of '{}' are disabled; 'vmctl checkpoint policy' allows them",
                     vm.name());
  TRY_VOID(CheckNewCheckpoint(options.temporary ? CheckpointMap() : inventory_.Checkpoints(vm.id()),
                              options.name.empty() ? "default" : options.name));
  TRY_VOID(CheckDisks(vm));
  config::Job job = TRY(
      Begin(config::CREATE_CHECKPOINT, vm.id(), options.request_id, "a checkpoint is being made"));
  job.set_checkpoint(options.id.empty() ? UpperCase(Guid::Random().ToString()) : options.id);
  job.set_compress(options.compress);
  const auto cancelled = std::make_shared<bool>(false);
  jobs_.SetCancel(job.id(), [cancelled] { *cancelled = true; });
  merger_.Suspend(vm.id(),
                  [this, alive = alive_, job, options, ended = std::move(ended), cancelled] {
                    if (!*alive) return;
                    if (*cancelled) return End(job, Error(Code::kCancelled, "cancelled"), ended);
                    jobs_.SetCancel(job.id(), nullptr);
                    PlanCreate(job, options, ended);
                  });
  return job;
}

Result<config::Job> Checkpoints::BeginWithCreate(config::Job job, const CreateOptions& first,
                                                 Created then) {
  job = TRY(jobs_.Begin(std::move(job)));
  const auto cancelled = std::make_shared<bool>(false);
  const auto created = Create(first, [this, alive = alive_, job, cancelled,
                                      then = std::move(then)](const Result<void>& made) {
    if (!*alive) return;
    jobs_.SetCancel(job.id(), nullptr);
    then(job, made.ok() && *cancelled ? Error(Code::kCancelled, "cancelled") : made);
  });
  if (!created.ok()) {
    jobs_.End(job.id(), created.error());
    return created.error();
  }
  const auto now = jobs_.Get(created->id());
  if (now.ok() && now->state() != config::JOB_RUNNING) return job;  // `then` was called
  // What the checkpoint is too far for, the rest of the job is not.
  jobs_.SetCancel(job.id(), [this, cancelled, first_id = created->id()] {
    *cancelled = true;
    (void)jobs_.Cancel(first_id);
  });
  return job;
}

void Checkpoints::PlanCreate(config::Job job, const CreateOptions& options, const Ended& ended) {
  const auto view = inventory_.Get(job.vm());
  if (!view.ok()) return End(job, view.error(), ended);
  const bool running = view->status.pid() != 0;
  const config::CheckpointPolicy policy = view->config.checkpoint_policy();
  Kind kind =
      options.kind.value_or(policy == config::STANDARD ? Kind::kStandard : Kind::kProduction);
  if (!running) kind = Kind::kStandard;  // whatever it is: all of it is in files already

  config::Vm checkpoint = view->config;
  config::Checkpoint& about = *checkpoint.mutable_checkpoint();
  about.set_id(job.checkpoint());
  about.set_created_filetime(FiletimeOfRealtime(loop_.clock().RealtimeNs()));
  about.set_name(options.name.empty()
                     ? DefaultCheckpointName(checkpoint.name(), about.created_filetime())
                     : options.name);
  about.set_parent(checkpoint.parent_checkpoint());
  about.set_production(kind == Kind::kProduction);
  about.set_automatic(options.automatic);
  checkpoint.set_saved(running ? kind == Kind::kStandard : checkpoint.saved());
  checkpoint.clear_parent_checkpoint();
  checkpoint.clear_unneeded_disks();
  checkpoint.clear_merging();
  config::Vm next = OnChildren(view->config, job.mutable_new_files());
  next.set_parent_checkpoint(job.checkpoint());
  *job.mutable_change()->add_store() = std::move(next);
  // Of one that is saved, the saved state is that of both.
  if (!running && checkpoint.saved())
    PlanSavedState(&view->config, checkpoint, job.mutable_change());
  *job.mutable_change()->add_store() = std::move(checkpoint);
  const auto kept = jobs_.Store(job);
  if (!kept.ok()) return End(job, kept, ended);
  if (!running) return MakeChildren(job, job.change().store(1), job.change().store(0), ended);
  const bool may_fall_back = !options.kind && policy == config::PRODUCTION;
  CaptureRunning(job, kind, may_fall_back, ended);
}

void Checkpoints::CaptureRunning(const config::Job& job, Kind kind, bool may_fall_back,
                                 const Ended& ended) {
  // A worker that ends in between: whoever starts the VM sees by the children what it has come to.
  const auto view = inventory_.Get(job.vm());
  if (!view.ok()) return End(job, view.error(), ended);
  config::Vm noted = view->config;
  for (int i = 0; i < noted.disks_size(); ++i) {
    if (IsWritten(noted.disks(i)))
      noted.mutable_disks(i)->set_next(job.change().store(0).disks(i).path());
  }
  const auto kept = inventory_.Store(noted);
  if (!kept.ok()) return End(job, kept, ended);
  if (kind == Kind::kProduction) return Freeze(job, may_fall_back, ended);
  Capture(job, kind, [this, job, ended](const Result<void>& captured) {
    captured.ok() ? Commit(job, ended) : Undo(job, captured.error(), ended);
  });
}

/// The guest's file systems are at rest at the instant, or it is no production checkpoint.
void Checkpoints::Freeze(const config::Job& job, bool may_fall_back, const Ended& ended) {
  const auto send_thaw = [this, vm = job.vm()](const Inventory::ReplyDone& done) {
    worker::Request thaw;
    thaw.mutable_thaw_guest();
    inventory_.Call(vm, std::move(thaw), kCallTimeoutNs, done);
  };
  // A guest that is thawed while it freezes gives the freeze up.
  const auto cancelled = std::make_shared<bool>(false);
  jobs_.SetCancel(job.id(), [cancelled, send_thaw] {
    *cancelled = true;
    send_thaw([](const auto&) {});
  });
  const auto failed = [this, job, may_fall_back, ended](const Error& error) {
    Error why = error;
    if (!may_fall_back)
      return Undo(job, std::move(why).WithContext("production checkpoint"), ended);
    spdlog::warn("'{}': a standard checkpoint in place of a production one: {}",
                 job.change().store(0).name(), error.ToString());
    config::Job standard = job;
    config::Vm* checkpoint = standard.mutable_change()->mutable_store(1);
    checkpoint->mutable_checkpoint()->set_production(false);
    checkpoint->set_saved(true);
    const auto kept = jobs_.Store(standard);
    if (!kept.ok()) return Undo(standard, kept.error(), ended);
    CaptureRunning(standard, Kind::kStandard, false, ended);
  };
  worker::Request freeze;
  freeze.mutable_freeze_guest()->set_timeout_ns(kFreezeTimeoutNs);
  inventory_.Call(
      job.vm(), std::move(freeze), kFreezeTimeoutNs + kCallTimeoutNs,
      [this, alive = alive_, job, failed, ended, cancelled,
       send_thaw](const Result<worker::Reply>& frozen) {
        if (!*alive) return;
        if (*cancelled) return Undo(job, Error(Code::kCancelled, "cancelled"), ended);
        if (!frozen.ok()) return failed(frozen.error());
        Capture(job, Kind::kProduction,
                [this, job, ended, send_thaw](const Result<void>& captured) {
                  send_thaw([this, alive = alive_, job, ended, captured](const auto& thawed) {
                    if (!*alive) return;
                    if (!captured.ok()) return Undo(job, captured.error(), ended);
                    // Thawed before the disks were taken: they may be anything.
                    if (!thawed.ok()) return Undo(job, thawed.error(), ended);
                    Commit(job, ended);
                  });
                });
      });
}

void Checkpoints::Capture(const config::Job& job, Kind kind, Ended done) {
  const config::Vm& checkpoint = job.change().store(1);
  worker::Request request;
  worker::CaptureRequest& capture = *request.mutable_capture();
  if (kind == Kind::kStandard) NameSavedState(checkpoint, &capture);
  capture.set_compress(job.compress());
  // One disk after the other goes on in its child: what a running guest writes meanwhile would be
  // on some and not on others. A frozen one writes nothing, and a pause would thaw it.
  capture.set_pause(kind == Kind::kDisks);
  for (int i = 0; i < checkpoint.disks_size(); ++i) {
    if (!IsWritten(checkpoint.disks(i))) continue;
    worker::CreateChildRequest* child = capture.add_children();
    child->set_controller(checkpoint.disks(i).controller());
    child->set_lun(checkpoint.disks(i).lun());
    child->set_path(job.change().store(0).disks(i).path());
  }
  follower_.Follow(job.id(), job.vm());
  inventory_.Call(job.vm(), std::move(request), kCaptureTimeoutNs,
                  [this, alive = alive_, id = job.id(), vm = job.vm(),
                   done = std::move(done)](const Result<worker::Reply>& reply) {
                    if (!*alive) return;
                    if (reply.ok()) {
                      jobs_.SetCost(id, reply->capture().pause_ns(),
                                    reply->capture().bytes_written());
                      jobs_.SetCancel(id, nullptr);  // what is left is to thaw the guest
                      return done({});
                    }
                    const Error error = reply.error();
                    if (!MayGoOn(error)) return done(error);
                    follower_.EndCapture(id, vm, [done, error] { done(error); });
                  });
}

/// A checkpoint that an earlier vmmd had begun: its worker may be at it still.
void Checkpoints::AwaitCapture(const config::Job& job) {
  follower_.AwaitEnd(job.id(), job.vm(), [this, job] {
    if (IsWhole(job)) return Commit(AsFound(job), nullptr);
    Undo(job, Error(Code::kAborted, "it was not whole when vmmd ended, or its virtual machine did"),
         nullptr);
  });
}

bool Checkpoints::IsWhole(const config::Job& job) const {
  if (job.change().store_size() != 2) return false;
  const config::Vm& checkpoint = job.change().store(1);
  const bool all = std::all_of(job.new_files().begin(), job.new_files().end(), FileExists);
  // What was to be linked is linked when the change is made.
  const bool state =
      !checkpoint.saved() || job.change().links_size() != 0 || FileExists(StateFileOf(checkpoint));
  return all && state && !job.new_files().empty();
}

/// A disk whose child is there goes on in it, though there is no checkpoint: what it stands on is
/// needed by nobody else, and becomes one with it.
void Checkpoints::SettleChildren(config::Job* job) {
  const auto view = inventory_.Get(job->vm());
  if (!view.ok() || job->change().store_size() != 2) return;
  config::Vm settled = view->config;
  const config::Vm& next = job->change().store(0);
  const config::Vm& before = job->change().store(1);
  for (config::Disk& disk : *settled.mutable_disks()) {
    for (int i = 0; i < next.disks_size(); ++i) {
      const std::string& child = next.disks(i).path();
      if (!IsWritten(next.disks(i)) || (disk.path() != child && disk.next() != child)) continue;
      disk.clear_next();
      if (!FileExists(child)) continue;
      disk.set_path(child);
      AddUnneeded(&settled, before.disks(i).path());
    }
  }
  // Its files are the machine's now.
  auto& files = *job->mutable_new_files();
  const auto is_used = [&settled](const std::string& file) {
    return std::any_of(settled.disks().begin(), settled.disks().end(),
                       [&file](const config::Disk& disk) { return disk.path() == file; });
  };
  files.erase(std::remove_if(files.begin(), files.end(), is_used), files.end());
  const auto stored = inventory_.Store(settled);
  if (!stored.ok()) spdlog::error("{}", stored.error().ToString());
  for (const std::string& file : SavedStateFilesOf(before)) {
    (void)RemoveFile(file);
    (void)RemoveFile(file + std::string(kUnfinishedSuffix));
  }
}

}  // namespace kvmbus::vmm
