// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/transfers.h"

#include "vmm/manager/job_progress.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"

namespace kvmbus::vmm {
Transfers::Transfers(Loop& loop, Inventory& inventory, Checkpoints& checkpoints, Jobs& jobs,
                     DiskFiles& files)
    : loop_(loop), inventory_(inventory), checkpoints_(checkpoints), jobs_(jobs), files_(files) {
  Recover();
}

Transfers::~Transfers() { *alive_ = false; }

/// The job names the folder already. A folder that was there before is nobody's to remove.
void Transfers::Run(const std::shared_ptr<Work>& work) {
  jobs_.SetCancel(work->job.id(), [cancelled = work->cancelled] { *cancelled = true; });
  const auto prepare = [this, work]() -> Result<void> {
    const auto made = MakeNewFolder(work->job.new_folders(0), kCopyFolderMode);
    if (!made.ok()) work->job.clear_new_folders();
    TRY_VOID(made);
    work->transfer = TRY(PlanTransfer(std::move(work->configs), work->flatten, files_));
    return {};
  };
  file_thread_.Do(prepare, [this, work](const Result<void>& planned) {
    planned.ok() ? Make(work) : Finish(work, planned);
  });
}

void Transfers::Make(const std::shared_ptr<Work>& work) {
  for (const std::string& file : work->transfer.NewFiles()) work->job.add_new_files(file);
  work->job.clear_new_folders();
  for (const std::string& folder : work->transfer.NewFolders()) work->job.add_new_folders(folder);
  const auto kept = jobs_.Store(work->job);
  if (!kept.ok()) return Finish(work, kept);
  const auto make = [this, work] {
    return MakeTransfer(work->transfer, files_,
                        ProgressOf(work->job.id(), loop_, jobs_, work->cancelled, alive_));
  };
  file_thread_.Do(make, [this, work](const Result<void>& made) { Finish(work, made); });
}

void Transfers::Finish(const std::shared_ptr<Work>& work, const Result<void>& result) {
  jobs_.SetCancel(work->job.id(), nullptr);
  if (!result.ok()) {
    const auto removed = RemoveTransfer(work->job.new_files(), work->job.new_folders());
    if (!removed.ok()) spdlog::error("{}", removed.error().ToString());
  }
  work->made(work->job, result);
}

void Transfers::End(const config::Job& job, const Result<void>& result, const Ended& ended) {
  inventory_.EndExport(job.vm(), job.id());
  jobs_.End(job.id(), result);
  if (ended) ended(result);
}

void Transfers::Recover() {
  for (const config::Job& job : jobs_.Unfinished()) {
    if (job.kind() != config::EXPORT_VM && job.kind() != config::IMPORT_VM) continue;
    const auto view = inventory_.Get(job.vm());
    const bool is_whole = job.kind() == config::EXPORT_VM
                              ? job.committed()
                              : view.ok() && !job.new_folders().empty() &&
                                    view->config.folder() == job.new_folders(0);
    Result<void> result;
    if (!is_whole) {
      const auto removed = RemoveTransfer(job.new_files(), job.new_folders());
      if (!removed.ok()) spdlog::error("{}", removed.error().ToString());
      result = Error(Code::kAborted, "vmmd ended in the middle of it; nothing is left of it");
    }
    job.own_checkpoint() ? DropOwnCheckpoint(job, result, nullptr) : End(job, result, nullptr);
  }
}

}  // namespace kvmbus::vmm
