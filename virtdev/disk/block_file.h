// SPDX-License-Identifier: Apache-2.0
/// \file
/// BlockFile: the file under an image, behind an interface, so that tests can cut its power.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "virtdev/disk/engine/direct_io.h"
#include "vmm/os/fd.h"
#include "vmm/result/result.h"

namespace kvmbus::virtdev {

/// Any thread. Errors are the host's.
class BlockFile {
 public:
  virtual ~BlockFile() = default;
  virtual vmm::Result<uint64_t> Size() = 0;
  virtual vmm::Result<void> Read(std::span<uint8_t> buffer, uint64_t offset) = 0;
  virtual vmm::Result<void> Write(std::span<const uint8_t> buffer, uint64_t offset) = 0;
  /// What was written before is durable when it returns.
  virtual vmm::Result<void> Flush() = 0;
  /// Grows with zeroes, or shrinks.
  virtual vmm::Result<void> Resize(uint64_t bytes) = 0;
  /// The range reads as zeroes; `keep_space` leaves it allocated.
  virtual vmm::Result<void> Zero(uint64_t offset, uint64_t length, bool keep_space) = 0;
  /// The host can take the space of a range back, which then reads as zeroes.
  virtual bool can_release() const { return true; }
  /// Gives the space of a range back; nothing happens where that cannot be.
  virtual vmm::Result<void> Release(uint64_t offset, uint64_t length) {
    return can_release() ? Zero(offset, length, false) : vmm::Result<void>();
  }
  /// A block device of the host: its size is what it is, and its content has one format, raw.
  virtual bool is_device() const { return false; }
  /// The host's descriptor for asynchronous I/O, or -1 if only the calls above serve.
  virtual int fd() const { return -1; }
  /// The host's descriptor that has the lock, or -1 if there is none: a part of what fd() lacks may
  /// be in memory.
  virtual int lock_fd() const { return fd(); }
  /// What transfers by fd() must keep to.
  virtual const IoAlignment& alignment() const {
    static constexpr IoAlignment kNone;
    return kNone;
  }
  /// Past the host's page cache from now on, for whole sectors of that size; the calls above still
  /// take anything. Before the first transfer. kUnimplemented: it cannot be, and is as before; the
  /// error says why.
  virtual vmm::Result<void> GoDirect(uint32_t /*sector_bytes*/) {
    return vmm::Error(vmm::Code::kUnimplemented, "a part of it is in memory");
  }
};

/// After a flush that failed, each further one: what it would say is durable need not be.
vmm::Error EarlierFlushFailed();

/// Flushes of an image that has nothing of its own to write: after one failure they fail for ever,
/// for the host may have dropped data. Any thread.
class StickyFlush {
 public:
  vmm::Result<void> Run(BlockFile& file);

 private:
  std::atomic<bool> failed_{false};
};

/// Opens and locks (shared if read-only, else exclusive). kNotFound, kUnavailable (in use),
/// kPermissionDenied, each with the remedy.
vmm::Result<std::unique_ptr<BlockFile>> OpenBlockFile(const std::string& path, bool read_only);

/// For a look at what somebody else may be writing: reads alone, and takes no lock.
vmm::Result<std::unique_ptr<BlockFile>> PeekBlockFile(const std::string& path);

/// Opens `file`, which is at `path` and locked as shared, for writing; the new one takes its lock
/// over, as an exclusive one. kUnavailable: others use it, kFailedPrecondition: another file is at
/// `path`; `file` keeps its lock then.
vmm::Result<std::unique_ptr<BlockFile>> ReopenForWriting(const std::string& path, BlockFile& file);
/// Gives the exclusive lock of one open of a file to another one as a shared lock; both may be the
/// same.
vmm::Result<void> ShareLock(BlockFile& from, BlockFile& to);

/// When the file was written last, in Unix time; 0 if it is not a file of the host.
int64_t ModifiedOf(const BlockFile& file);

/// No byte of it is set.
bool IsZero(std::span<const uint8_t> bytes);

}  // namespace kvmbus::virtdev
