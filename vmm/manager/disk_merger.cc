// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/disk_merger.h"

#include <algorithm>
#include <filesystem>

#include "vmm/manager/job_progress.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"

namespace kvmbus::vmm {
namespace {

/// After a failure, and twice as long after each further one.
constexpr uint64_t kFirstRetryNs = 30'000'000'000, kLastRetryNs = 3600'000'000'000;
constexpr uint64_t kLeftNs = 1'000'000'000;
constexpr uint64_t kFollowNs = 500'000'000;
constexpr size_t kMaxDepth = 64;

/// A symbolic link is what a live merge of a top leaves of its name: the file is gone.
bool IsThere(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(std::filesystem::symlink_status(path, error));
}

/// A block device, or a disk that is gone and was not made for a checkpoint, stands on nothing.
bool HasNoParent(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  return std::filesystem::is_block_file(status) ||
         (status.type() == std::filesystem::file_type::not_found && !IsLeafPath(path));
}

/// What tells files apart: images name their parents without symbolic links, configurations may
/// reach the same files by way of some. The file itself need not be there.
std::string KeyOf(const std::string& path) {
  const std::filesystem::path whole(path);
  return RealPath(FolderOf(path)).value_or(FolderOf(path)) + "/" + whole.filename().string();
}

/// The same of a disk. The name that a live merge left is a symbolic link to what the disk is now.
std::string FileKeyOf(const std::string& disk) { return RealPath(disk).value_or(KeyOf(disk)); }

/// It was cut short when it was as good as over: what stood on the file stands on the other one.
bool IsLinkedAnew(const config::DiskMerge& merge, const DiskForest& forest) {
  return std::any_of(merge.children().begin(), merge.children().end(), [&](const auto& child) {
    const auto at = forest.parents.find(KeyOf(child));
    return at != forest.parents.end() && at->second == KeyOf(merge.into());
  });
}

/// Replaces the name of a disk; whether it was there.
bool Rename(config::Vm* vm, const std::string& from, const std::string& to) {
  bool found = false;
  for (config::Disk& disk : *vm->mutable_disks()) {
    if (disk.kind() != config::HARD_DISK || KeyOf(disk.path()) != from) continue;
    disk.set_path(to);
    found = true;
  }
  return found;
}

std::set<std::string> UnneededOf(const config::Vm& vm) {
  std::set<std::string> keys;
  for (const std::string& file : vm.unneeded_disks()) keys.insert(KeyOf(file));
  return keys;
}

void SetUnneeded(config::Vm* vm, const std::set<std::string>& files) {
  vm->clear_unneeded_disks();
  for (const std::string& file : files) vm->add_unneeded_disks(file);
}

}  // namespace

void AddUnneeded(config::Vm* vm, const std::string& file) {
  std::set<std::string> files = UnneededOf(*vm);
  files.insert(KeyOf(file));
  SetUnneeded(vm, files);
}

DiskMerger::DiskMerger(Loop& loop, Inventory& inventory, Jobs& jobs, DiskFiles& files)
    : loop_(loop),
      inventory_(inventory),
      jobs_(jobs),
      files_(files),
      operations_(inventory, DiskOperations::For::kJobs) {}

DiskMerger::~DiskMerger() {
  *alive_ = false;
  for (auto& [vm, task] : tasks_) {
    if (task.cancelled) *task.cancelled = true;
    loop_.CancelTimer(task.timer);
  }
}

void DiskMerger::Suspend(const std::string& vm, std::function<void()> idle) {
  Task& task = tasks_[vm];
  ++task.suspended;
  if (!task.working) return idle();
  task.waiters.push_back(std::move(idle));
  *task.cancelled = true;
  if (!task.live_file.empty()) operations_.Cancel(task.live_file, [](const Result<void>&) {});
}

void DiskMerger::Resume(const std::string& vm) {
  Task& task = tasks_[vm];
  if (task.suspended > 0) --task.suspended;
  task.retry_ns = 0;
  Pump(vm);
}

/// Takes the next step, if there is one to take.
void DiskMerger::Pump(const std::string& vm) {
  Task& task = tasks_[vm];
  const auto view = inventory_.Get(vm);
  if (task.suspended != 0 || task.working || !view.ok()) return;
  loop_.CancelTimer(task.timer);
  task.timer = 0;
  const config::Vm& config = view->config;
  if (config.unneeded_disks().empty() && !config.has_merging()) return Ended(vm, {}, true);
  task.working = true;
  task.cancelled = std::make_shared<std::atomic<bool>>(false);
  if (task.job.empty()) {
    config::Job job;
    job.set_kind(config::MERGE_DISKS);
    job.set_vm(vm);
    if (auto begun = jobs_.Begin(std::move(job)); begun.ok()) task.job = begun->id();
  }
  if (config.has_merging() && !IsThere(config.merging().file()))
    return FinishMerge(vm, config.merging());
  auto plan = std::make_shared<Result<Plan>>(Plan());
  file_thread_.Do(
      [this, plan, config, checkpoints = inventory_.Checkpoints(vm),
       others = OthersThan(vm)]() -> Result<void> {
        *plan = MakePlan(config, checkpoints, others);
        return {};
      },
      [this, vm, plan](const Result<void>&) { OnPlan(vm, *plan); });
}

/// The key of what the image stands on; "": nothing.
Result<std::string> DiskMerger::ParentOf(const std::string& file) {
  if (HasNoParent(file)) return std::string();
  const std::string parent = TRY(files_.ParentOf(file));
  return parent.empty() ? parent : KeyOf(parent);
}

/// Reads the images' parents.
Result<DiskMerger::Plan> DiskMerger::MakePlan(const config::Vm& vm,
                                              const CheckpointMap& checkpoints,
                                              const std::vector<config::Vm>& others) {
  const std::set<std::string> unneeded = UnneededOf(vm);
  Plan plan;
  std::vector<std::string> tops;
  const auto name = [&](const config::Vm& config) {
    for (const config::Disk& disk : config.disks()) {
      if (disk.kind() != config::HARD_DISK) continue;
      const std::string key = KeyOf(disk.path()), file = FileKeyOf(disk.path());
      if (key != file && IsThere(file)) plan.links[key] = file;
      plan.forest.named.insert(file);
      tops.push_back(file);
    }
  };
  name(vm);
  for (const auto& [id, checkpoint] : checkpoints) name(checkpoint);
  for (const std::string& file : unneeded) {
    IsThere(file) ? tops.push_back(file) : void(plan.missing.insert(file));
  }
  for (std::string file : tops) {
    for (size_t depth = 0; !file.empty() && plan.forest.parents.count(file) == 0; ++depth) {
      if (depth > kMaxDepth) return MakeError(Code::kDataLoss, "'{}' has too many parents", file);
      const std::string parent = TRY(ParentOf(file));
      file = plan.forest.parents[file] = parent;
    }
  }
  // The link to a base that nobody merges is somebody's choice.
  std::erase_if(plan.links, [&](const auto& link) {
    return unneeded.count(link.second) == 0 && plan.forest.parents[link.second].empty();
  });
  AddOthers(others, &plan.forest);
  AddForeign(unneeded, &plan.forest);
  for (const std::string& file : unneeded) {
    // A disk that was not made for a checkpoint is its owner's, whoever has it now.
    if (!IsLeafPath(file) && plan.forest.named.count(file) == 0 &&
        plan.forest.ChildrenOf(file).empty())
      plan.missing.insert(file);
  }
  plan.step = plan.forest.NextStep(unneeded);
  return plan;
}

/// The configurations of all machines but this one, and of their checkpoints.
std::vector<config::Vm> DiskMerger::OthersThan(const std::string& vm) const {
  std::vector<config::Vm> others;
  for (const VmView& view : inventory_.List()) {
    if (view.config.id() == vm) continue;
    others.push_back(view.config);
    for (const auto& [id, checkpoint] : inventory_.Checkpoints(view.config.id()))
      others.push_back(checkpoint);
  }
  return others;
}

/// Disks of other machines may stand on files of this one: linked clones do.
void DiskMerger::AddOthers(const std::vector<config::Vm>& others, DiskForest* forest) {
  for (const config::Vm& vm : others) {
    for (const config::Disk& disk : vm.disks()) {
      if (disk.kind() != config::HARD_DISK) continue;
      std::string file = FileKeyOf(disk.path());
      forest->named.insert(file);
      for (size_t depth = 0; depth <= kMaxDepth && forest->parents.count(file) == 0; ++depth) {
        const auto parent = ParentOf(file);
        if (!parent.ok() || parent->empty()) break;  // of what cannot be read nothing is known
        forest->foreign.insert(file);
        file = forest->parents[file] = *parent;
      }
    }
  }
}

/// Images beside those that may go, which stand on one of them and belong to no configuration: a
/// disk that was detached, for one.
void DiskMerger::AddForeign(const std::set<std::string>& unneeded, DiskForest* forest) {
  std::set<std::string> folders;
  for (const std::string& file : unneeded)
    folders.insert(std::filesystem::path(file).parent_path().string());
  std::error_code error;
  for (const std::string& folder : folders) {
    for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
      // A key as it is: the folder is that of one.
      const std::string path = entry.path().string(), extension = entry.path().extension().string();
      const bool image = extension == ".avhdx" || extension == ".vhdx" || extension == ".avhd" ||
                         extension == ".vhd";
      if (!image || forest->parents.count(path) != 0 || !IsThere(path)) continue;
      const auto parent = ParentOf(path);
      if (!parent.ok() || unneeded.count(*parent) == 0) continue;
      forest->parents[path] = *parent;
      forest->foreign.insert(path);
    }
  }
}

void DiskMerger::OnPlan(const std::string& vm, const Result<Plan>& plan) {
  if (!plan.ok()) return Ended(vm, plan.error(), false);
  const auto view = inventory_.Get(vm);
  if (!view.ok()) return Ended(vm, view.error(), false);
  if (*tasks_[vm].cancelled) return Ended(vm, Error(Code::kCancelled, "cancelled"), false);
  if (!plan->links.empty()) return FollowLinks(vm, plan->links);
  if (view->config.has_merging() && IsLinkedAnew(view->config.merging(), plan->forest)) {
    const auto removed = RemoveFile(view->config.merging().file());
    return removed.ok() ? FinishMerge(vm, view->config.merging()) : Ended(vm, removed, false);
  }
  if (view->config.has_merging()) return BeginMerge(vm, view->config, plan->forest);
  if (!plan->missing.empty()) {
    config::Vm changed = view->config;
    std::set<std::string> files = UnneededOf(changed);
    for (const std::string& file : plan->missing) files.erase(file);
    SetUnneeded(&changed, files);
    return Ended(vm, inventory_.Store(changed), false);
  }
  // Files that two states grew from wait until one of them is gone.
  if (!plan->step) return Ended(vm, {}, true);
  if (plan->step->kind == DiskForest::Step::Kind::kDelete) return Delete(vm, *plan);
  config::Vm changed = view->config;
  changed.mutable_merging()->set_file(plan->step->file);
  changed.mutable_merging()->set_into(plan->step->into);
  BeginMerge(vm, std::move(changed), plan->forest);
}

/// Notes who stands on the file. Of a merge that was begun before, that may be more by now: a
/// checkpoint gives it another child.
void DiskMerger::BeginMerge(const std::string& vm, config::Vm config, const DiskForest& forest) {
  config::DiskMerge& merge = *config.mutable_merging();
  std::set<std::string> children(merge.children().begin(), merge.children().end());
  for (std::string& child : forest.ChildrenOf(merge.file())) children.insert(std::move(child));
  merge.clear_children();
  for (const std::string& child : children) merge.add_children(child);
  if (const auto stored = inventory_.Store(config); !stored.ok()) return Ended(vm, stored, false);
  Merge(vm, merge);
}

/// What a file is merged into, or who stands on it, is known by files.
void DiskMerger::FollowLinks(const std::string& vm,
                             const std::map<std::string, std::string>& links) {
  std::vector<config::Vm> all = {inventory_.Get(vm)->config};
  for (const auto& [id, checkpoint] : inventory_.Checkpoints(vm)) all.push_back(checkpoint);
  for (config::Vm& config : all) {
    bool changed = false;
    for (const auto& [link, file] : links) changed = Rename(&config, link, file) || changed;
    if (!changed) continue;
    if (const auto stored = inventory_.Store(config); !stored.ok()) return Ended(vm, stored, false);
  }
  Ended(vm, {}, false);
}

void DiskMerger::Delete(const std::string& vm, const Plan& plan) {
  auto done = RemoveFile(plan.step->file);
  const auto view = inventory_.Get(vm);
  if (done.ok() && view.ok()) {
    config::Vm changed = view->config;
    std::set<std::string> files = UnneededOf(changed);
    files.erase(plan.step->file);
    SetUnneeded(&changed, files);
    done = inventory_.Store(changed);
  }
  Ended(vm, done, false);
}

void DiskMerger::Merge(const std::string& vm, const config::DiskMerge& merge) {
  const auto view = inventory_.Get(vm);
  if (!view.ok() || view->status.pid() == 0) return MergeHere(vm, merge);
  tasks_[vm].live_file = merge.file();
  FollowLive(vm);
  operations_.Merge(merge.file(), [this, alive = alive_, vm, merge](const Result<void>& merged) {
    if (!*alive) return;
    if (!merged.ok() && merged.error().code() == Code::kFailedPrecondition)
      return AwaitLive(vm, merged.error());
    tasks_[vm].live_file.clear();
    if (merged.ok()) return FinishMerge(vm, merge);
    // The machine that runs stands on other branches.
    if (merged.error().code() == Code::kNotFound) return MergeHere(vm, merge);
    Ended(vm, merged, false);
  });
}

/// Refused. If it is because the disk is being merged already, as an earlier vmmd had asked, the
/// end of that is waited for; Suspend can cancel it meanwhile.
void DiskMerger::AwaitLive(const std::string& vm, const Error& error) {
  operations_.Find(tasks_[vm].live_file, [this, alive = alive_, vm,
                                          error](const Result<DiskOperations::Place>& place) {
    if (!*alive) return;
    if (place.ok() && place->disk.changing()) {
      loop_.AddTimer(kFollowNs, [this, alive, vm] {
        if (*alive) AwaitLive(vm, Error(Code::kUnavailable, "an earlier vmmd's merge has ended"));
      });
      return;
    }
    tasks_[vm].live_file.clear();
    Ended(vm, error, false);
  });
}

void DiskMerger::FollowLive(const std::string& vm) {
  loop_.AddTimer(kFollowNs, [this, alive = alive_, vm] {
    if (!*alive || tasks_[vm].live_file.empty()) return;
    operations_.Find(tasks_[vm].live_file,
                     [this, alive, vm](const Result<DiskOperations::Place>& place) {
                       if (!*alive || tasks_[vm].live_file.empty()) return;
                       if (place.ok() && place->disk.total() != 0)
                         jobs_.SetProgress(tasks_[vm].job, place->disk.done(), place->disk.total());
                       FollowLive(vm);
                     });
  });
}

void DiskMerger::MergeHere(const std::string& vm, const config::DiskMerge& merge) {
  // A worker that ended, or that an earlier vmmd had asked, has done it.
  if (!IsThere(merge.file())) return FinishMerge(vm, merge);
  const Task& task = tasks_[vm];
  const auto work = [this, merge, alive = alive_, cancelled = task.cancelled, job = task.job] {
    return files_.Merge(merge.file(), ProgressOf(job, loop_, jobs_, cancelled, alive));
  };
  file_thread_.Do(work, [this, vm, merge](const Result<void>& merged) {
    merged.ok() ? FinishMerge(vm, merge) : Ended(vm, merged, false);
  });
}

/// The file is gone. Who stood on it stands on what it was merged into.
void DiskMerger::FinishMerge(const std::string& vm, const config::DiskMerge& merge) {
  const auto relink = [this, merge]() -> Result<void> {
    for (const std::string& child : merge.children()) {
      if (!IsThere(child)) continue;
      const auto parent = ParentOf(child);  // a running machine's is linked already
      if (parent.ok() && *parent == KeyOf(merge.into())) continue;
      TRY_VOID(files_.Reparent(child, merge.into()));
    }
    return {};
  };
  file_thread_.Do(relink, [this, vm, merge](const Result<void>& linked) {
    if (!linked.ok()) return Ended(vm, linked, false);
    const auto view = inventory_.Get(vm);
    if (!view.ok()) return Ended(vm, view.error(), false);
    const std::string file = KeyOf(merge.file());
    for (auto& [id, checkpoint] : inventory_.Checkpoints(vm)) {
      config::Vm changed = checkpoint;
      if (!Rename(&changed, file, merge.into())) continue;
      if (const auto stored = inventory_.Store(changed); !stored.ok())
        return Ended(vm, stored, false);
    }
    config::Vm changed = view->config;
    Rename(&changed, file, merge.into());
    std::set<std::string> files = UnneededOf(changed);
    ReplaceMerged(file, KeyOf(merge.into()), &files);
    SetUnneeded(&changed, files);
    changed.clear_merging();
    Ended(vm, inventory_.Store(changed), false);
  });
}

/// The end of one step. `all_done`: nothing is left to merge, or nothing that can be merged now.
void DiskMerger::Ended(const std::string& vm, const Result<void>& result, bool all_done) {
  Task& task = tasks_[vm];
  task.working = false;
  task.cancelled.reset();
  const bool cancelled = !result.ok() && result.error().code() == Code::kCancelled;
  const bool left = !result.ok() && result.error().code() == Code::kUnavailable;
  if (!task.job.empty() && (all_done || (!result.ok() && !cancelled && !left)))
    jobs_.End(std::exchange(task.job, ""), result);
  for (const auto& waiter : std::exchange(task.waiters, {})) waiter();
  if (all_done || task.suspended != 0) return;
  if (result.ok()) task.retry_ns = 0;
  if (result.ok() || cancelled) return Pump(vm);
  // If the machine that did it has ended, its files can be had here in a moment.
  if (!left) task.retry_ns = std::clamp(2 * task.retry_ns, kFirstRetryNs, kLastRetryNs);
  task.timer = loop_.AddTimer(left ? kLeftNs : task.retry_ns, [this, vm] { Pump(vm); });
}

}  // namespace kvmbus::vmm
