// SPDX-License-Identifier: Apache-2.0
// What the inventory knows of checkpoints, and how it changes the files of a VM and of its
// checkpoints together.
#include <algorithm>

#include "vmm/config/vm_files.h"
#include "vmm/manager/inventory_record.h"
#include "vmm/os/file.h"

namespace kvmbus::vmm {

Result<void> CheckNotBusy(const std::string& name, const std::string& busy) {
  if (busy.empty()) return {};
  return MakeError(Code::kFailedPrecondition,
                   "'{}' is busy: {}; wait for the end of that ('vmctl job list')", name, busy);
}

CheckpointMap Inventory::Checkpoints(const std::string& id) const {
  const Record* record = Find(id);
  return record == nullptr ? CheckpointMap() : record->checkpoints;
}

Result<void> Inventory::Reserve(const std::string& id, const std::string& what) {
  Record* record = Find(id);
  if (record == nullptr) return MakeError(Code::kNotFound, "there is no virtual machine '{}'", id);
  TRY_VOID(CheckNotBusy(record->config.name(), record->busy));
  if (record->preparing || record->start_done)
    return MakeError(Code::kFailedPrecondition, "'{}' is being started; wait for it",
                     record->config.name());
  if (record->changes != 0)
    return MakeError(Code::kFailedPrecondition,
                     "'{}': a disk of it is being attached, detached or changed; wait for that",
                     record->config.name());
  record->busy = what;
  return {};
}

void Inventory::Release(const std::string& id) {
  if (Record* record = Find(id)) record->busy.clear();
  Notify(id);
}

void Inventory::BeginExport(const std::string& id, const std::string& job) {
  if (Record* record = Find(id)) record->exports.insert(job);
}

void Inventory::EndExport(const std::string& id, const std::string& job) {
  Record* record = Find(id);
  // Who waits for the end of it: an automatic checkpoint that was to go.
  if (record != nullptr && record->exports.erase(job) != 0) Notify(id);
}

Result<void> Inventory::CheckNotExported(const std::string& id) const {
  const Record* record = Find(id);
  if (record == nullptr || record->exports.empty()) return {};
  return MakeError(Code::kFailedPrecondition,
                   "'{}' is being exported: wait for the end of that, or cancel it ('vmctl job "
                   "cancel {}')",
                   record->config.name(), *record->exports.begin());
}

Result<void> Inventory::Store(const config::Vm& vm) {
  Record* record = Find(vm.id());
  if (record == nullptr)
    return MakeError(Code::kNotFound, "there is no virtual machine '{}'", vm.id());
  TRY_VOID_CTX(store_->Save(vm), "storing '{}'", vm.name());
  if (vm.has_checkpoint()) {
    record->checkpoints[vm.checkpoint().id()] = vm;
    return {};
  }
  record->config = vm;
  if (!record->active()) record->status.set_state(RestStateOf(vm));
  Notify(vm.id());
  return {};
}

Result<void> Inventory::Make(const config::FileChange& change) {
  for (const config::Vm& vm : change.store()) TRY_VOID(Store(vm));
  for (const config::FileLink& link : change.links()) {
    if (link.from().empty()) {
      TRY_VOID(RemoveFile(link.to()));
    } else {
      // 5.0 has saved states in folders of their own; one that was never saved has none yet.
      TRY_VOID(MakeFolders(FolderOf(link.to()), 0750));
      TRY_VOID(LinkFile(link.from(), link.to()));
    }
  }
  for (const config::Vm& vm : change.remove()) {
    const auto removed = store_->Delete(vm);
    if (!removed.ok() && removed.error().code() != Code::kNotFound) return removed;
    for (const std::string& file : SavedStateFilesOf(vm)) TRY_VOID(RemoveFile(file));
    if (Record* record = Find(vm.id())) record->checkpoints.erase(vm.checkpoint().id());
  }
  return {};
}

void Inventory::LoadCheckpoints(const std::vector<config::Vm>& checkpoints) {
  for (const config::Vm& checkpoint : checkpoints) {
    if (Record* record = Find(checkpoint.id()))
      record->checkpoints[checkpoint.checkpoint().id()] = checkpoint;
  }
}

}  // namespace kvmbus::vmm
