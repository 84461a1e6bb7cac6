// SPDX-License-Identifier: Apache-2.0
/// \file
/// LiveChain: a disk's chain while its queues run, and the means to change it under them.
#pragma once

#include <functional>
#include <memory>

#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/write_log.h"

namespace kvmbus::virtdev {

/// One thread at a time changes it, one that IoHold::Run allows.
class LiveChain {
 public:
  virtual ~LiveChain() = default;
  /// Outside of a hold the layers are what they are: the caller alone changes them.
  virtual Chain& chain() = 0;
  /// Runs `change` while no request is under way: see IoHold::Run. The disk's size and layers may
  /// be others after it.
  virtual vmm::Result<void> Hold(const std::function<vmm::Result<void>()>& change) = 0;
  /// Within a change: what is written from now on is marked there; null: nowhere.
  virtual void SetWriteLog(std::shared_ptr<WriteLog> log) = 0;
  /// Tells the listener (DiskIo::SetResizeListener) of another size.
  virtual void TellResized() = 0;
};

}  // namespace kvmbus::virtdev
