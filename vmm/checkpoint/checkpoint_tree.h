// SPDX-License-Identifier: Apache-2.0
/// \file
/// The tree of a VM's checkpoints, and the names of what belongs to it. A checkpoint is the
/// configuration that the VM had, with a `checkpoint` in it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "config/vm.pb.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

inline constexpr size_t kMaxCheckpoints = 50;
inline constexpr size_t kMaxCheckpointNameBytes = 100;

/// By id.
using CheckpointMap = std::map<std::string, config::Vm>;

/// By id or name. kNotFound; kFailedPrecondition for a name that several have.
Result<std::string> FindCheckpoint(const CheckpointMap& checkpoints, const std::string& id_or_name);

/// The checkpoint and all that grew from it, leaves first.
std::vector<std::string> SubtreeOf(const CheckpointMap& checkpoints, const std::string& id);

/// Parents before children, siblings by age: each with its depth. A parent that is missing counts
/// as none.
std::vector<std::pair<std::string, size_t>> InTreeOrder(const CheckpointMap& checkpoints);

/// kResourceExhausted for the 51st, kInvalidArgument for a name that is empty, too long or not
/// printable.
Result<void> CheckNewCheckpoint(const CheckpointMap& checkpoints, const std::string& name);

/// "web - (11/28/2026 - 01:45:10 PM)", in local time, as Hyper-V Manager has it.
std::string DefaultCheckpointName(const std::string& vm_name, uint64_t created_filetime);

/// A hard disk that is not read-only: a checkpoint takes it along.
bool IsWritten(const config::Disk& disk);
/// Whether one of those is this file; `path` as RealPath has it.
bool WritesTo(const config::Vm& vm, const std::string& path);

/// Beside the disk: "<name of its base>_<GUID>.avhdx", or .avhd.
std::string NewLeafPath(const std::string& disk);
/// Whether a file has such a name: it was made for a checkpoint.
bool IsLeafPath(const std::string& disk);

}  // namespace kvmbus::vmm
