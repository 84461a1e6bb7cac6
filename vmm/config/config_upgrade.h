// SPDX-License-Identifier: Apache-2.0
/// \file
/// From version 5.0 to 6.2: new files beside the old ones, one step that makes them count (the
/// registry's entry), then the old ones go. For config_store.cc.
#pragma once

#include <string>
#include <vector>

#include "config/vm.pb.h"
#include "vmm/config/config_registry.h"
#include "vmm/config/file_operations.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

/// The machine as it is afterwards.
Result<config::Vm> UpgradeConfig(FileOperations& files, ConfigRegistry& registry,
                                 const config::Vm& vm, bool discard_saved_states);

/// Ends or undoes upgrades that a kill has interrupted. What could not be done.
std::vector<Error> SettleUpgrades(FileOperations& files, ConfigRegistry& registry);

/// Paths of the configuration files in a folder, sorted; none if there is no folder.
std::vector<std::string> ConfigFilesIn(const std::string& folder);

}  // namespace kvmbus::vmm
