// SPDX-License-Identifier: Apache-2.0
/// \file
/// A configuration that somebody else made, on its way to this host. It may be hostile: whatever
/// file it names counts only if it lies in the folders that the caller gave.
#pragma once

#include <string>
#include <vector>

#include "config/vm.pb.h"
#include "vmm/config/vm_tree.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

struct ImportOptions {
  std::string file;                  ///< of the configuration; the folder around it is given too
  std::vector<std::string> folders;  ///< where else its disks may be
  std::string name;                  ///< instead of its own, unless ""
  config::Firmware firmware;         ///< instead of its own, unless empty
};

struct ImportPlan {
  config::Vm vm;
  std::vector<config::Vm> checkpoints;
  std::vector<Incompatibility> obstacles;          ///< it cannot be registered with these
  std::vector<Incompatibility> incompatibilities;  ///< it can, and loses this
};

/// What registering it where it is would make of it; changes nothing. Disks are found by their
/// paths or by their names. It gets a new generation id.
Result<ImportPlan> PlanImport(const ImportOptions& options);

}  // namespace kvmbus::vmm
