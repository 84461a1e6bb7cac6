// SPDX-License-Identifier: Apache-2.0
/// \file
/// HostRequirement: one thing that a host must have to run virtual machines, and what was found.
#pragma once

#include <string>

#include "vmm/result/result.h"

namespace kvmbus::vmm {

struct HostRequirement {
  std::string name;    ///< "second-level address translation"
  std::string found;   ///< "kvm_amd.npt=N"
  std::string needed;  ///< "kvm_intel.ept=Y or kvm_amd.npt=Y"
  bool ok = false;
  std::string remedy;                     ///< one sentence; "" if ok
  Code code = Code::kFailedPrecondition;  ///< of the error that refuses a start for want of it
};

}  // namespace kvmbus::vmm
