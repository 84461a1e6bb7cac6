// SPDX-License-Identifier: Apache-2.0
/// \file
/// BlockFile: the file under an image, behind an interface, so that tests can cut its power.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "virtdev/disk/direct_io.h"
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
  /// A block device of the host: its size is what it is, and its content has one format, raw.
  virtual bool is_device() const { return false; }
  /// The host's descriptor for asynchronous I/O, or -1 if only the calls above serve.
  virtual int fd() const { return -1; }
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

/// No byte of it is set.
bool IsZero(std::span<const uint8_t> bytes);

}  // namespace kvmbus::virtdev
