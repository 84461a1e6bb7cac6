// SPDX-License-Identifier: Apache-2.0
/// \file
/// A configuration that somebody else made, on its way to this host. It may be hostile: whatever
/// file it names counts only if it lies in the folders that the caller gave.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "config/vm.pb.h"
#include "vmm/config/vm_tree.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

enum class ImportMode {
  kRegister,  ///< its files are used where they are
  kRestore,   ///< they are copied
  kCopy,      ///< they are copied, and the copy gets ids of its own
};

struct ImportOptions {
  std::string file;                  ///< of the configuration; the folder around it is given too
  std::vector<std::string> folders;  ///< where else its disks may be
  std::string name;                  ///< instead of its own, unless ""
  config::Firmware firmware;         ///< instead of its own, unless empty
  ImportMode mode = ImportMode::kRegister;
  std::string destination;  ///< of a copy: a folder of its name is made in this one
  /// The file that an image stands on, "" for a base: parents have to lie in the folders too.
  std::function<Result<std::string>(const std::string& path)> parent_of;
};

/// A configuration, and what becomes of it.
struct ImportedConfig {
  std::string file;
  config::Vm before;  ///< as it is there; paths that count are found ones
  config::Vm vm;      ///< as it will be; of a copy all but the paths of its files
};

struct ImportPlan {
  ImportedConfig machine;
  std::vector<ImportedConfig> checkpoints;
  std::vector<Incompatibility> obstacles;          ///< it cannot be imported with these
  std::vector<Incompatibility> incompatibilities;  ///< it can, and loses this
};

/// What importing it would make of it; changes nothing. Disks are found by their paths or by their
/// names. It gets a new generation id.
Result<ImportPlan> PlanImport(const ImportOptions& options);

}  // namespace kvmbus::vmm
