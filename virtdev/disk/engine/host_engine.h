// SPDX-License-Identifier: Apache-2.0
/// \file
/// HostEngine: asynchronous reads and writes of a disk's files: io_uring where the host allows it,
/// else threads.
#pragma once

#include <sys/uio.h>

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "virtdev/disk/block_file.h"
#include "vmm/event/loop.h"

namespace kvmbus::virtdev {

struct HostTransfer;

/// Told once for each transfer submitted, on the queue's loop.
class HostCompletion {
 public:
  virtual ~HostCompletion() = default;
  virtual void OnTransferDone(HostTransfer& transfer, int error) = 0;  ///< 0 or an errno
};

/// One transfer; the submitter's again once it is done. Reused, so that its pieces keep their
/// memory.
struct HostTransfer {
  BlockFile* file = nullptr;
  bool write = false;
  uint64_t offset = 0;
  std::vector<iovec> iov;
  HostCompletion* completion = nullptr;
  void* owner = nullptr;  ///< the submitter's own

  /// The pieces that are still to be transferred.
  std::span<iovec> rest() { return std::span(iov).subspan(done); }
  /// Takes `bytes` off the front: what a short transfer has done.
  void Advance(size_t bytes);

  size_t done = 0;  ///< pieces; Advance's
};

/// Home: the loop that it was made for.
class HostQueue {
 public:
  virtual ~HostQueue() = default;
  /// The transfer may be done before it returns.
  virtual void Submit(HostTransfer& transfer) = 0;
  /// Transfers may be done before it returns.
  virtual void Kick() = 0;
  /// Waits until nothing is under way; completions are delivered meanwhile.
  virtual void Drain() = 0;
};

/// Makes queues; outlives them. Any thread.
class HostEngine {
 public:
  virtual ~HostEngine() = default;
  virtual std::string_view name() const = 0;  ///< "io_uring", "threads"
  /// Takes any buffer, and makes what is a copy of memory on the loop itself.
  vmm::Result<std::unique_ptr<HostQueue>> OpenQueue(vmm::Loop& loop);
  /// Passes transfers on as they are: they must suit their files.
  virtual vmm::Result<std::unique_ptr<HostQueue>> OpenPlainQueue(vmm::Loop& loop) = 0;
};

/// io_uring, or threads if the host forbids it or `force_threads`.
std::unique_ptr<HostEngine> MakeHostEngine(bool force_threads);

// The engines; MakeHostEngine chooses. The first is null where io_uring is not to be had.
std::unique_ptr<HostEngine> MakeUringEngine();
std::unique_ptr<HostEngine> MakeThreadEngine();

/// Transfers it, or its rest, here and now. `flags` are preadv2's, none for a file that has no
/// descriptor. 0 or an errno; with one, a part may have been transferred.
int TransferNow(HostTransfer& transfer, int flags);

}  // namespace kvmbus::virtdev
