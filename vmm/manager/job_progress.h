// SPDX-License-Identifier: Apache-2.0
/// \file
/// How far work on files is, for its job.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "vmm/checkpoint/disk_files.h"
#include "vmm/event/loop.h"
#include "vmm/manager/jobs.h"

namespace kvmbus::vmm {

/// For work on another thread: `jobs` hears of it on `loop`, its home, while `*alive`; the work
/// gives up when `*cancelled`.
inline DiskFiles::Progress ProgressOf(const std::string& job, Loop& loop, Jobs& jobs,
                                      std::shared_ptr<std::atomic<bool>> cancelled,
                                      std::shared_ptr<bool> alive) {
  return [=, &loop, &jobs](uint64_t done, uint64_t total) {
    loop.Post([job, &jobs, alive, done, total] {
      if (*alive) jobs.SetProgress(job, done, total);
    });
    return !cancelled->load();
  };
}

}  // namespace kvmbus::vmm
