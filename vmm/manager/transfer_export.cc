// SPDX-License-Identifier: Apache-2.0
// Exports. Of a machine that is off or saved, the files themselves; nobody starts it meanwhile. Of
// one that runs, or of a checkpoint, those of the checkpoint: nobody writes them, and merges wait.
#include <algorithm>

#include "vmm/config/vm_files.h"
#include "vmm/guid/guid.h"
#include "vmm/manager/transfers.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"
#include "vmm/text/letter_case.h"

namespace kvmbus::vmm {
namespace {

constexpr uint64_t kRetryNs = 500'000'000;

/// In another folder, without what vmmd owes its files here.
ConfigMove MoveOf(const config::Vm& vm, const std::string& folder) {
  ConfigMove move{ConfigFileOf(vm), SavedStateFilesOf(vm), vm};
  move.vm.set_folder(folder);
  move.vm.clear_unneeded_disks();
  move.vm.clear_merging();
  return move;
}

/// The machine as it was.
ConfigMove MachineOf(const config::Vm& checkpoint, const std::string& folder) {
  ConfigMove move = MoveOf(checkpoint, folder);
  move.vm.set_parent_checkpoint(checkpoint.checkpoint().parent());
  move.vm.clear_checkpoint();
  return move;
}

std::vector<ConfigMove> MovesOf(const CheckpointMap& checkpoints, const std::string& but,
                                const std::string& folder) {
  std::vector<ConfigMove> moves;
  for (const auto& [id, checkpoint] : checkpoints) {
    if (id != but) moves.push_back(MoveOf(checkpoint, folder));
  }
  return moves;
}

Result<std::string> NewFolderIn(const std::string& folder, const std::string& name) {
  const std::string path = NormalFolder(folder) + "/" + name;
  if (!FileExists(folder))
    return MakeError(Code::kNotFound, "there is no folder '{}'; make it first", folder);
  if (FileExists(path))
    return MakeError(Code::kAlreadyExists,
                     "'{}' is there already; choose another folder, or move it away", path);
  return path;
}

Checkpoints::Kind KindOf(Transfers::Capture capture) {
  switch (capture) {
    case Transfers::Capture::kDataConsistent:
      return Checkpoints::Kind::kProduction;
    case Transfers::Capture::kCrashConsistent:
      return Checkpoints::Kind::kDisks;
    default:
      return Checkpoints::Kind::kStandard;
  }
}

}  // namespace

Result<config::Job> Transfers::Export(const ExportOptions& options, Ended ended) {
  if (const config::Job* same = jobs_.FindRequest(options.request_id)) return *same;
  const VmView view = TRY(inventory_.Get(options.vm));
  const config::Vm& vm = view.config;
  TRY_VOID(CheckCanBeCopied(vm));
  config::Job job;
  job.set_kind(config::EXPORT_VM);
  job.set_vm(vm.id());
  job.set_request_id(options.request_id);
  job.add_new_folders(TRY(NewFolderIn(options.folder, vm.name())));
  if (!options.checkpoint.empty()) {
    job.set_checkpoint(TRY(FindCheckpoint(inventory_.Checkpoints(vm.id()), options.checkpoint)));
    job = TRY(jobs_.Begin(std::move(job)));
    inventory_.BeginExport(vm.id(), job.id());
    ExportFromCheckpoint(job, true, ended);
    return job;
  }
  TRY_VOID(inventory_.CheckNotExported(vm.id()));  // with a checkpoint that goes in the middle
  if (view.status.pid() == 0) return ExportAtRest(std::move(job), vm, ended);
  return ExportRunning(std::move(job), options, ended);
}

Result<config::Job> Transfers::ExportAtRest(config::Job job, const config::Vm& vm,
                                            const Ended& ended) {
  TRY_VOID(inventory_.Reserve(vm.id(), "it is being exported"));
  auto begun = jobs_.Begin(std::move(job));
  if (!begun.ok()) {
    inventory_.Release(vm.id());
    return begun;
  }
  const auto work = std::make_shared<Work>();
  work->job = *begun;
  work->made = [this, ended](const config::Job& made, const Result<void>& result) {
    inventory_.Release(made.vm());
    checkpoints_.image_worker().Resume(made.vm());
    End(made, result, ended);
  };
  checkpoints_.image_worker().Suspend(vm.id(), [this, alive = alive_, work] {
    if (!*alive) return;
    const std::string& folder = work->job.new_folders(0);
    // What the merges have come to.
    const config::Vm now = inventory_.Get(work->job.vm())->config;
    work->configs = MovesOf(inventory_.Checkpoints(now.id()), "", folder);
    work->configs.push_back(MoveOf(now, folder));
    Run(work);
  });
  return begun;
}

Result<config::Job> Transfers::ExportRunning(config::Job job, const ExportOptions& options,
                                             const Ended& ended) {
  Checkpoints::CreateOptions wanted;
  wanted.vm = options.vm;
  wanted.kind = KindOf(options.capture);
  wanted.id = UpperCase(Guid::Random().ToString());
  wanted.name = "Export of it";
  wanted.temporary = true;
  job.set_checkpoint(wanted.id);
  job.set_own_checkpoint(true);
  auto begun = checkpoints_.BeginWithCreate(
      std::move(job), wanted,
      [this, alive = alive_, ended](const config::Job& exporting, const Result<void>& made) {
        if (!*alive) return;
        if (!made.ok()) return DropOwnCheckpoint(exporting, made, ended);
        ExportFromCheckpoint(exporting, false, ended);
      });
  if (!begun.ok()) return begun;
  const auto now = jobs_.Get(begun->id());
  if (now.ok() && now->state() == config::JOB_RUNNING)
    inventory_.BeginExport(options.vm, begun->id());
  return begun;
}

/// `alone`: the checkpoint is what is wanted; else it stands for its machine.
void Transfers::ExportFromCheckpoint(const config::Job& job, bool alone, const Ended& ended) {
  const auto work = std::make_shared<Work>();
  work->job = job;
  work->flatten = alone;
  work->made = [this, ended](config::Job made, const Result<void>& result) {
    checkpoints_.image_worker().Resume(made.vm());
    Result<void> kept = result;
    if (result.ok()) {
      made.set_committed(true);
      kept = jobs_.Store(made);
    }
    made.own_checkpoint() ? DropOwnCheckpoint(made, kept, ended) : End(made, kept, ended);
  };
  checkpoints_.image_worker().Suspend(job.vm(), [this, alive = alive_, work, alone] {
    if (!*alive) return;
    const CheckpointMap all = inventory_.Checkpoints(work->job.vm());
    const std::string& folder = work->job.new_folders(0);
    const auto found = all.find(work->job.checkpoint());
    if (found == all.end()) {
      work->job.clear_new_folders();
      return Finish(work, Error(Code::kNotFound, "the checkpoint is not there any more"));
    }
    if (!alone) work->configs = MovesOf(all, found->first, folder);
    work->configs.push_back(MachineOf(found->second, folder));
    if (alone) work->configs.back().vm.clear_parent_checkpoint();
    Run(work);
  });
}

/// The job ends with it, so that a vmmd that ends before does not forget it.
void Transfers::DropOwnCheckpoint(const config::Job& job, const Result<void>& result,
                                  const Ended& ended) {
  const auto end = [this, alive = alive_, job, result, ended](const Result<void>& dropped) {
    if (!*alive) return;
    if (!dropped.ok())
      spdlog::warn("the checkpoint of an export stays: {}", dropped.error().ToString());
    End(job, result, ended);
  };
  const auto unfinished = jobs_.Unfinished();
  const bool is_being_made =
      std::any_of(unfinished.begin(), unfinished.end(), [&job](const config::Job& other) {
        return other.kind() == config::CREATE_CHECKPOINT && other.checkpoint() == job.checkpoint();
      });
  if (!is_being_made) {
    if (inventory_.Checkpoints(job.vm()).count(job.checkpoint()) == 0)
      return End(job, result, ended);  // it was never made
    if (checkpoints_.DeleteOwn(job.vm(), job.checkpoint(), end).ok()) return;
  }
  // Its machine is busy with something else.
  loop_.AddTimer(kRetryNs, [this, alive = alive_, job, result, ended] {
    if (*alive) DropOwnCheckpoint(job, result, ended);
  });
}

}  // namespace kvmbus::vmm
