// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/checkpoint_plan.h"

#include "vmm/checkpoint/checkpoint_tree.h"
#include "vmm/config/vm_files.h"

namespace kvmbus::vmm {

config::Vm OnChildren(config::Vm vm, google::protobuf::RepeatedPtrField<std::string>* children) {
  for (config::Disk& disk : *vm.mutable_disks()) {
    if (!IsWritten(disk)) continue;
    disk.set_path(NewLeafPath(disk.path()));
    *children->Add() = disk.path();
  }
  return vm;
}

void PlanSavedState(const config::Vm* from, const config::Vm& to, config::FileChange* change) {
  const std::vector<std::string> files = SavedStateFilesOf(to);
  for (size_t i = 0; i < files.size(); ++i) {
    config::FileLink* link = change->add_links();
    if (from != nullptr) link->set_from(SavedStateFilesOf(*from)[i]);
    link->set_to(files[i]);
  }
}

}  // namespace kvmbus::vmm
