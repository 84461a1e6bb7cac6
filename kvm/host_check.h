// SPDX-License-Identifier: Apache-2.0
/// \file
/// What this host must have before a VM starts, each with found and needed.
#pragma once

#include <vector>

#include "vmm/hypervisor/host_requirement.h"
#include "vmm/result/result.h"

namespace kvmbus::kvm {

/// Every requirement, in the order in which an administrator would mend them.
std::vector<vmm::HostRequirement> CheckHost();

/// The first requirement that is not met, as kFailedPrecondition with its remedy. `without_slat`
/// overlooks second-level address translation (tests of the machine model).
vmm::Result<void> RequireHost(bool without_slat);

}  // namespace kvmbus::kvm
