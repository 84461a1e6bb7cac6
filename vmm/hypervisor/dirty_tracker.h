// SPDX-License-Identifier: Apache-2.0
/// \file
/// DirtyTracker: which pages the guest writes. What the VMM itself writes, vmm/memory knows.
#pragma once

#include "vmm/memory/page_set.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

/// Any one thread at a time, whether the processors run or not.
class DirtyTracker {
 public:
  virtual ~DirtyTracker() = default;
  /// Writes are noted from some moment of the call on.
  virtual Result<void> StartTracking() = 0;
  /// Adds the pages written since they were last taken, and goes on. With `last` it need not go on:
  /// Stop is next.
  virtual Result<void> TakeDirtyPages(PageSet* pages, bool last) = 0;
  virtual void StopTracking() = 0;
};

}  // namespace kvmbus::vmm
