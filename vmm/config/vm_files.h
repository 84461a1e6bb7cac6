// SPDX-License-Identifier: Apache-2.0
/// \file
/// The names of a VM's files, as Hyper-V has them. A configuration that has a `checkpoint` means
/// that checkpoint's.
#pragma once

#include <string>
#include <vector>

#include "config/vm.pb.h"

namespace kvmbus::vmm {

/// <folder>/Virtual Machines/<ID>.vmcx, or .xml (5.0); <folder>/Snapshots/<checkpoint ID>.vmcx.
std::string ConfigFileOf(const config::Vm& vm);
/// Where a saved state has the devices: <ID>.vmrs beside it, or <ID>/<ID>.vsv (5.0).
std::string StateFileOf(const config::Vm& vm);
/// Where a saved state has the memory: the same .vmrs, or <ID>/<ID>.bin (5.0).
std::string MemoryFileOf(const config::Vm& vm);
/// One of them, or both.
std::vector<std::string> SavedStateFilesOf(const config::Vm& vm);
/// <folder>/Virtual Machines and <folder>/Snapshots.
std::string MachinesFolderOf(const config::Vm& vm);
std::string CheckpointsFolderOf(const config::Vm& vm);

/// As a configuration names a folder: absolute, without "..", "//" or a slash at the end.
std::string NormalFolder(const std::string& folder);

}  // namespace kvmbus::vmm
