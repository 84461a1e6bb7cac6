// SPDX-License-Identifier: Apache-2.0
/// \file
/// A host queue that takes any buffer, on one that takes what its files' direct I/O takes.
#pragma once

#include "virtdev/disk/engine/host_engine.h"

namespace kvmbus::virtdev {

/// Transfers whose memory does not suit their file go through buffers of this queue, a bounded
/// number of pieces at a time. The others pass. Home: as the queue below.
std::unique_ptr<HostQueue> MakeBounceQueue(std::unique_ptr<HostQueue> below);

}  // namespace kvmbus::virtdev
