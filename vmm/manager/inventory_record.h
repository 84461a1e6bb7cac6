// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the inventory knows of one VM. For its own files.
#pragma once

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
  std::vector<Done> off_waiters;
  bool preparing = false;  ///< waits for the owners of its shared disks before it starts
  std::map<std::string, DiskOwners::Hold> shared_disks;  ///< of a running one, by path

  bool active() const { return process.pid > 0; }
};

/// The images that the VM shares with others.
std::vector<std::string> SharedImages(const config::Vm& vm);

}  // namespace kvmbus::vmm
