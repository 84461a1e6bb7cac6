// SPDX-License-Identifier: Apache-2.0
/// \file
/// vmctl's exit status. 0 done; 1 failed (check: the image is damaged); 2 bad usage (check: cannot
/// judge); 3 vmmd does not answer; otherwise 10 + gRPC's canonical code: 11 cancelled, 12 unknown,
/// 13 invalid argument, 14 timed out, 15 not found, 16 exists or runs already, 17 permission, 18
/// out of a resource, 19 precondition (no SLAT, wrong state), 20 broken off (vmmd or the virtual
/// machine ended in the middle), 21 beyond a limit, 22 not supported (no /dev/kvm), 23 internal, 24
/// in use, 25 damaged data.
#pragma once

#include "vmm/result/result.h"

namespace kvmbus::cmd {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitNoDaemon = 3;
inline constexpr int kExitCodeBase = 10;

inline int ExitCodeOf(vmm::Code code) { return kExitCodeBase + static_cast<int>(code); }

}  // namespace kvmbus::cmd
