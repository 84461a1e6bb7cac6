// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmm/disk_change.h"

#include "vmm/os/thread.h"

namespace kvmbus::cmd {

DiskChange::DiskChange(vmm::Loop& loop, Work work, Done done)
    : thread_([this, &loop, work = std::move(work), done = std::move(done)] {
        vmm::NameThisThread("work/change");
        auto result = work([this](uint64_t at, uint64_t total) {
          done_ = at;
          total_ = total;
          return !cancelled_.load();
        });
        loop.Post([done, result = std::move(result), alive = std::weak_ptr<bool>(alive_)] {
          if (!alive.expired()) done(result);
        });
      }) {}

DiskChange::~DiskChange() {
  Cancel();
  thread_.join();
}

}  // namespace kvmbus::cmd
