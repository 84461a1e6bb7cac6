// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/engine/host_engine.h"

#include <algorithm>
#include <cerrno>
#include <climits>

#include "virtdev/disk/engine/bounce_queue.h"
#include "virtdev/disk/engine/cached_write_queue.h"

namespace kvmbus::virtdev {
namespace {

/// A file that exists in memory only, or partly there.
int TransferByCalls(const HostTransfer& transfer) {
  uint64_t offset = transfer.offset;
  for (const iovec& piece : transfer.iov) {
    auto* data = static_cast<uint8_t*>(piece.iov_base);
    const auto done = transfer.write ? transfer.file->Write({data, piece.iov_len}, offset)
                                     : transfer.file->Read({data, piece.iov_len}, offset);
    if (!done.ok()) return done.error().sys_errno() != 0 ? done.error().sys_errno() : EIO;
    offset += piece.iov_len;
  }
  return 0;
}

}  // namespace

int TransferNow(HostTransfer& transfer, int flags) {
  const int fd = transfer.file->fd();
  if (fd < 0) return TransferByCalls(transfer);
  while (!transfer.rest().empty()) {
    const std::span<iovec> iov = transfer.rest();
    const int pieces = static_cast<int>(std::min<size_t>(iov.size(), IOV_MAX));
    const auto offset = static_cast<off_t>(transfer.offset);
    const ssize_t n = transfer.write ? ::pwritev2(fd, iov.data(), pieces, offset, flags)
                                     : ::preadv2(fd, iov.data(), pieces, offset, flags);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if (n == 0) return transfer.write ? ENOSPC : EIO;
    transfer.Advance(static_cast<size_t>(n));
  }
  return 0;
}

vmm::Result<std::unique_ptr<HostQueue>> HostEngine::OpenQueue(vmm::Loop& loop) {
  auto plain = TRY_CTX(OpenPlainQueue(loop), "opening a queue of a disk");
  return MakeBounceQueue(MakeCachedWriteQueue(std::move(plain), loop));
}

void HostTransfer::Advance(size_t bytes) {
  offset += bytes;
  while (done < iov.size() && bytes >= iov[done].iov_len) bytes -= iov[done++].iov_len;
  if (done == iov.size()) return;
  iov[done].iov_base = static_cast<uint8_t*>(iov[done].iov_base) + bytes;
  iov[done].iov_len -= bytes;
}

std::unique_ptr<HostEngine> MakeHostEngine(bool force_threads) {
  auto uring = force_threads ? nullptr : MakeUringEngine();
  return uring ? std::move(uring) : MakeThreadEngine();
}

}  // namespace kvmbus::virtdev
