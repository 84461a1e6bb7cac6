// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/live/live_disk.h"

namespace kvmbus::virtdev {

vmm::Result<void> ResizeLiveDisk(LiveChain& live, uint64_t size_bytes) {
  if (live.chain().info().read_only)
    return vmm::Error(vmm::Code::kFailedPrecondition, "the disk is attached read-only");
  TRY_VOID(live.Hold([&] { return live.chain().Grow(size_bytes); }));
  live.TellResized();
  return {};
}

}  // namespace kvmbus::virtdev
