// SPDX-License-Identifier: Apache-2.0
// Imports: registered where the files are, or copied.
#include "vmm/config/vm_files.h"
#include "vmm/manager/transfers.h"
#include "vmm/os/file.h"

namespace kvmbus::vmm {
namespace {

ConfigMove MoveOf(const ImportedConfig& config) {
  return {config.file, SavedStateFilesOf(config.before), config.vm};
}

std::vector<config::Vm> CheckpointsOf(const ImportPlan& plan) {
  std::vector<config::Vm> checkpoints;
  for (const ImportedConfig& checkpoint : plan.checkpoints) checkpoints.push_back(checkpoint.vm);
  return checkpoints;
}

}  // namespace

Result<ImportPlan> Transfers::Compare(const ImportOptions& options) const {
  ImportPlan plan = TRY(PlanImport(options));
  const config::Vm& vm = plan.machine.vm;
  for (const VmView& other : inventory_.List()) {
    if (other.config.id() == vm.id())
      plan.obstacles.push_back(
          {fmt::format("'{}' has its id {}", other.config.name(), vm.id()),
           "import a copy of it with --copy, which gets another id, or delete that one"});
    else if (other.config.name() == vm.name())
      plan.obstacles.push_back({fmt::format("there is a machine named '{}'", vm.name()),
                                "give it another name with --name"});
  }
  if (options.mode == ImportMode::kRegister) return plan;
  if (const auto copied = CheckCanBeCopied(plan.machine.before); !copied.ok())
    plan.obstacles.push_back({copied.error().ToString(), "attach it again afterwards"});
  if (!FileExists(options.destination))
    plan.obstacles.push_back(
        {fmt::format("there is no folder '{}'", options.destination), "make it first"});
  if (FileExists(vm.folder()))
    plan.obstacles.push_back({fmt::format("'{}' is there already", vm.folder()),
                              "choose another folder with --destination"});
  return plan;
}

Result<Transfers::Imported> Transfers::Import(ImportOptions options, bool compare,
                                              const std::string& request_id, Ended ended) {
  if (const config::Job* same = jobs_.FindRequest(request_id)) return Imported{{}, *same};
  if (options.destination.empty()) options.destination = inventory_.state_dir();
  options.parent_of = [this](const std::string& path) { return files_.ParentOf(path); };
  Imported imported = {TRY(Compare(options)), std::nullopt};
  const ImportPlan& plan = imported.plan;
  if (compare) return imported;
  if (!plan.obstacles.empty())
    return MakeError(Code::kFailedPrecondition,
                     "importing '{}': {}: {} (--compare lists all that is in the way, {} in all)",
                     plan.machine.vm.name(), plan.obstacles[0].what, plan.obstacles[0].fix,
                     plan.obstacles.size());
  if (options.mode == ImportMode::kRegister)
    TRY_VOID(inventory_.Register(plan.machine.vm, CheckpointsOf(plan)));
  else
    imported.job = TRY(ImportCopy(plan, request_id, std::move(ended)));
  return imported;
}

Result<config::Job> Transfers::ImportCopy(const ImportPlan& plan, const std::string& request_id,
                                          Ended ended) {
  const auto work = std::make_shared<Work>();
  work->job.set_kind(config::IMPORT_VM);
  work->job.set_vm(plan.machine.vm.id());
  work->job.set_request_id(request_id);
  work->job.add_new_folders(plan.machine.vm.folder());
  for (const ImportedConfig& checkpoint : plan.checkpoints)
    work->configs.push_back(MoveOf(checkpoint));
  work->configs.push_back(MoveOf(plan.machine));
  work->made = [this, work = std::weak_ptr(work), ended](const config::Job& copied,
                                                         const Result<void>& made) {
    if (!made.ok()) return End(copied, made, ended);
    std::vector<config::Vm> checkpoints;
    for (const ConfigMove& config : work.lock()->transfer.configs) checkpoints.push_back(config.vm);
    const config::Vm machine = checkpoints.back();
    checkpoints.pop_back();
    const auto registered = inventory_.Register(machine, checkpoints);
    if (!registered.ok()) (void)RemoveTransfer(copied.new_files(), copied.new_folders());
    End(copied, registered, ended);
  };
  work->job = TRY(jobs_.Begin(work->job));
  Run(work);
  return work->job;
}

}  // namespace kvmbus::vmm
