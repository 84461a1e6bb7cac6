// SPDX-License-Identifier: Apache-2.0
/// \file
/// DetachTicket: gives a disk back once no channel uses it any more.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "virtdev/disk/disk_io.h"
#include "vmm/event/loop.h"

namespace kvmbus::virtdev {

/// Held by each channel that still uses a removed disk; the last one to let go gives the disk back,
/// on the main loop.
class DetachTicket {
 public:
  using Done = std::function<void(std::shared_ptr<DiskIo> disk)>;

  DetachTicket(vmm::Loop& main_loop, std::shared_ptr<DiskIo> disk, Done done)
      : main_loop_(main_loop), disk_(std::move(disk)), done_(std::move(done)) {}
  ~DetachTicket() {
    main_loop_.Post([disk = std::move(disk_), done = std::move(done_)]() mutable {
      if (done) done(std::move(disk));
    });
  }
  DetachTicket(const DetachTicket&) = delete;
  DetachTicket& operator=(const DetachTicket&) = delete;

 private:
  vmm::Loop& main_loop_;
  std::shared_ptr<DiskIo> disk_;
  Done done_;
};

}  // namespace kvmbus::virtdev
