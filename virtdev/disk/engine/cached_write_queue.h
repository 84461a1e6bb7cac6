// SPDX-License-Identifier: Apache-2.0
/// \file
/// A host queue that makes writes to the host's page cache itself, on one that can wait for them.
#pragma once

#include "virtdev/disk/engine/host_engine.h"

namespace kvmbus::virtdev {

/// A write to the page cache is a copy of memory, nearly always, and much less work than waking a
/// thread that makes it and being woken by it, which is how io_uring does it for file systems that
/// cannot tell beforehand whether they would wait. So Kick makes these writes, as far as the loop's
/// budget allows it, and they are done before it returns. Where the file system can tell, it makes
/// those that do not wait. All other transfers go to the queue below. Home: as the queue below,
/// whose loop it is.
std::unique_ptr<HostQueue> MakeCachedWriteQueue(std::unique_ptr<HostQueue> below, vmm::Loop& loop);

}  // namespace kvmbus::virtdev
