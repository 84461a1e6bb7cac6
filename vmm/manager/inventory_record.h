// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the inventory knows of one VM. For its own files.
#pragma once

#include <set>

#include "vmm/manager/inventory.h"

namespace kvmbus::vmm {

struct Inventory::Record {
  config::Vm config;
  worker::Status status;
  WorkerProcess process;
  std::unique_ptr<WorkerLink> link;
  Done start_done;
  Loop::TimerId start_timer = 0;
  Loop::TimerId connect_timer = 0;
  uint64_t connect_delay_ns = 0;  ///< until the next try
  bool link_lost = false;         ///< what was asked over the last link may not have arrived
  std::string stranger;  ///< why its worker, which runs, takes no orders of ours; "": it does
  std::vector<Done> off_waiters;
  bool preparing = false;  ///< waits for the owners of its shared disks before it starts
  std::map<std::string, DiskOwners::Hold> shared_disks;  ///< of a running one, by path
  CheckpointMap checkpoints;
  std::set<std::string> exports;  ///< jobs that copy its files and those of its checkpoints
  int changes = 0;   ///< of its disks that its worker makes now, and that are stored then
  std::string busy;  ///< what is being done to its files; "": nothing

  bool active() const { return process.pid > 0; }
};

/// Of a VM without a worker: Off, or Saved.
worker::State RestStateOf(const config::Vm& vm);
/// kFailedPrecondition: a saved state would not fit what is about to be changed.
Result<void> CheckNotSaved(const config::Vm& vm);
/// kFailedPrecondition that says so; `busy` as a record has it.
Result<void> CheckNotBusy(const std::string& name, const std::string& busy);
/// For a capture: the files of the saved state of a VM or checkpoint, and its version.
void NameSavedState(const config::Vm& vm, worker::CaptureRequest* request);

/// The images that the VM shares with others.
std::vector<std::string> SharedImages(const config::Vm& vm);

}  // namespace kvmbus::vmm
