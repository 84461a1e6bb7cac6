// SPDX-License-Identifier: Apache-2.0
/// \file
/// What jobs of checkpoints plan for files: for the sources of Checkpoints.
#pragma once

#include "config/job.pb.h"

namespace kvmbus::vmm {

/// The machine on new children of the disks that it writes; their names go to `children`.
config::Vm OnChildren(config::Vm vm, google::protobuf::RepeatedPtrField<std::string>* children);

/// The saved state of `from` becomes that of `to` too, which has the same version; null: that of
/// `to` is removed.
void PlanSavedState(const config::Vm* from, const config::Vm& to, config::FileChange* change);

}  // namespace kvmbus::vmm
