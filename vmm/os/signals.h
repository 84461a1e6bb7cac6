// SPDX-License-Identifier: Apache-2.0
/// \file
/// The signals by which a process is asked to end, as something to wait for.
#pragma once

#include "vmm/os/fd.h"

namespace kvmbus::vmm {

/// Blocks SIGTERM and SIGINT for this thread and those that it starts from now on; they are read
/// (signalfd_siginfo) from what is returned, which does not block.
Fd TakeEndSignals();

}  // namespace kvmbus::vmm
