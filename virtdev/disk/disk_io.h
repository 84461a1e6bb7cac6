// SPDX-License-Identifier: Apache-2.0
/// \file
/// DiskIo: a virtual disk as its front end (SCSI) sees it, whatever its format.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "vmm/event/loop.h"
#include "vmm/guid/guid.h"
#include "vmm/os/counter.h"
#include "vmm/result/result.h"

namespace kvmbus::virtdev {

struct DiskInfo {
  uint64_t size_bytes = 0;  ///< a multiple of logical_sector_bytes
  uint32_t logical_sector_bytes = 512;
  uint32_t physical_sector_bytes = 4096;
  bool read_only = false;
  bool can_unmap = false;  ///< kUnmap releases space
  bool unmapped_reads_zero = false;
  vmm::Guid disk_id;  ///< VHDX page 83 data; derived from the path for formats that have none
  bool operator==(const DiskInfo&) const = default;
};

class DiskRequest;
class LiveChain;
class ScsiCommand;

/// Told once for each request submitted, on the queue's home thread.
class DiskCompletion {
 public:
  virtual ~DiskCompletion() = default;
  virtual void OnDiskComplete(DiskRequest& request) = 0;
};

/// One request; owned by the submitter, untouched by it from Submit until OnDiskComplete.
class DiskRequest {
 public:
  enum class Op { kRead, kWrite, kFlush, kUnmap, kWriteZeroes };

  Op op = Op::kRead;
  bool fua = false;     ///< kWrite and kWriteZeroes: durable before it completes
  uint64_t offset = 0;  ///< bytes, a multiple of the logical sector
  uint64_t length =
      0;  ///< bytes, a multiple of the logical sector; the sum of iov for read and write
  std::span<const iovec> iov;  ///< the guest's pages; any alignment
  DiskCompletion* completion = nullptr;
  /// For the queue of a shared disk: the command to forward. The other fields do not count then.
  ScsiCommand* command = nullptr;
  bool unlimited = false;  ///< Storage QoS lets it pass, and does not count it

  int error = 0;                ///< result: 0 or an errno (EIO, ENOSPC, EROFS, EINVAL ...)
  bool command_failed = false;  ///< result, of `command`, whose status says more; `error` stays 0

  void* engine = nullptr;  ///< the queue's own, while it is submitted
  struct Qos {
    DiskCompletion* completion = nullptr;
    DiskRequest* next = nullptr;  ///< the request that waits behind this one
    uint64_t since_ns = 0;        ///< when it began to wait, or to be under way
  };
  Qos qos;  ///< QosQueue's own, likewise
};

/// A stream of requests of one thread (one storvsc channel). Home: the loop that it was opened on.
/// Destroying it while requests are under way is a programmer's error: Drain first.
class DiskQueue {
 public:
  virtual ~DiskQueue() = default;
  /// Requests of a queue may complete in any order; a flush covers the writes that completed before
  /// it was submitted. The engine may hold the request back until Kick.
  virtual void Submit(DiskRequest& request) = 0;
  /// Starts what was submitted: one system call for a batch. Requests that need not wait may
  /// complete within it, as within Submit.
  virtual void Kick() = 0;
  /// Waits until nothing is under way; completions are delivered meanwhile.
  virtual void Drain() = 0;
};

class DiskQos;

/// An open image. Queues of one DiskIo may live on different threads; it keeps its own metadata
/// safe.
class DiskIo {
 public:
  virtual ~DiskIo() = default;
  virtual const DiskInfo& info() const = 0;
  virtual std::string_view format() const = 0;  ///< "raw", "vhd", "vhdx"
  virtual vmm::Result<std::unique_ptr<DiskQueue>> OpenQueue(vmm::Loop& loop) = 0;
  /// Flushes, marks the image clean. All queues are gone by then. Without it the next open replays
  /// the log.
  virtual vmm::Result<void> Close() = 0;
  virtual void VisitCounters(const vmm::CounterVisitor&) const {}
  /// The disk's limits and how long its requests take; null: the disk has no Storage QoS. Any
  /// thread.
  virtual DiskQos* qos() { return nullptr; }
  /// `changed` runs on the thread that changes the size, after info() has the new one; null: nobody
  /// listens. No call of the former listener is under way when this returns. Images whose size
  /// cannot change while they are open ignore it.
  virtual void SetResizeListener(std::function<void()>) {}
  /// The means to change the image while it is in use (live_disk.h); null: it cannot be changed.
  virtual LiveChain* live() { return nullptr; }
};

enum class DiskCaching {
  kDirect,    ///< past the host's page cache, where the file system and the image let us
  kBuffered,  ///< through it
};

struct DiskOpenOptions {
  bool read_only = false;
  bool force_threads = false;  ///< do not try io_uring
  /// Of the image itself. The parents of a differencing image, which many disks may share, always
  /// use the page cache.
  DiskCaching caching = DiskCaching::kDirect;
  /// Folders in which the parents of a differencing image may lie, at any depth, after all symbolic
  /// links: what an image says of its parent is not trusted with any other file of the host. None:
  /// the folder of the image itself and the folder above that one (unless it is /).
  std::vector<std::string> roots;
};

/// Opens an image, locks it (shared for read_only, else exclusive) and replays its log; likewise
/// the parents of a differencing image, which are never written: shared, and replayed in memory.
/// VHDX files are those named .vhdx or .avhdx that have its signature, VHD files (.vhd, .avhd)
/// likewise; a file where only one of the two holds is refused, for a guest could write the
/// signature into a raw disk. The rest is raw. Errors name the path and the remedy: kNotFound
/// (missing), kUnavailable (in use by another process), kDataLoss (damaged: what and where),
/// kFailedPrecondition (a parent is not the one that its child was made on), kPermissionDenied,
/// kInvalidArgument.
vmm::Result<std::unique_ptr<DiskIo>> OpenDisk(const std::string& path,
                                              const DiskOpenOptions& options);

}  // namespace kvmbus::virtdev
