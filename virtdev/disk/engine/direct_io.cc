// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/engine/direct_io.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "vmm/os/fd.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

constexpr size_t kPieceBytes = 256u << 10;

/// A checksum that is made of memory which a guest changes meanwhile is wrong: btrfs would call the
/// data damaged when it is read next.
bool HasChecksums(int fd) {
  struct statfs system = {};
  unsigned long flags = 0;
  return ::fstatfs(fd, &system) == 0 && system.f_type == BTRFS_SUPER_MAGIC &&
         (::ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0 || (flags & FS_NOCOW_FL) == 0);
}

/// What the kernel says, since 6.1 for most file systems; {0, 0}: that there is no direct I/O on
/// this one.
bool AskAlignment(int fd, IoAlignment* alignment) {
#ifdef STATX_DIOALIGN
  struct statx status = {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) < 0 ||
      (status.stx_mask & STATX_DIOALIGN) == 0)
    return false;
  *alignment = {status.stx_dio_mem_align, status.stx_dio_offset_align};
  return true;
#else
  return false;
#endif
}

/// What a read takes; {0, 0} if none.
IoAlignment TryAlignment(int fd) {
  AlignedBuffer buffer(2 * AlignedBuffer::kAlignment);
  for (const uint32_t bytes : {512u, 4096u}) {
    // Memory that is aligned to this and to no more.
    if (::pread(fd, buffer.span().data() + bytes, bytes, 0) >= 0) return {bytes, bytes};
  }
  return {0, 0};
}

Result<IoAlignment> FindAlignment(int fd, uint32_t sector_bytes) {
  IoAlignment alignment;
  if (!AskAlignment(fd, &alignment)) alignment = TryAlignment(fd);
  if (alignment.bytes == 0 || alignment.memory > AlignedBuffer::kAlignment)
    return MakeError(Code::kUnimplemented, "its file system has no direct I/O");
  if (alignment.bytes > sector_bytes)
    return MakeError(Code::kUnimplemented,
                     "the host's storage has sectors of {} bytes and the disk of {}: direct I/O "
                     "wants a disk with {} (vmctl disk create --logical-sector {})",
                     alignment.bytes, sector_bytes, alignment.bytes, alignment.bytes);
  return alignment;
}

/// Reads up to the end of the file: how much.
Result<size_t> ReadSome(int fd, std::span<uint8_t> buffer, uint64_t offset) {
  size_t done = 0;
  while (done < buffer.size()) {
    const ssize_t n =
        ::pread(fd, buffer.data() + done, buffer.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return vmm::Error::FromErrno(errno, "reading");
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

bool Fits(const IoAlignment& alignment, const uint8_t* memory, uint64_t offset, size_t bytes) {
  return reinterpret_cast<uintptr_t>(memory) % alignment.memory == 0 &&
         offset % alignment.bytes == 0 && bytes % alignment.bytes == 0;
}

/// The units around a piece of a range, at most kPieceBytes.
struct Window {
  Window(const IoAlignment& alignment, uint64_t offset, size_t bytes)
      : skip(offset % alignment.bytes),
        start(offset - skip),
        used(std::min<size_t>(bytes, kPieceBytes - skip)),
        whole((skip + used + alignment.bytes - 1) / alignment.bytes * alignment.bytes) {}
  size_t skip;     ///< before the piece
  uint64_t start;  ///< of the first unit
  size_t used;     ///< of the piece
  size_t whole;    ///< of the units
};

}  // namespace

Result<IoAlignment> TurnDirect(int fd, uint32_t sector_bytes) {
  if (HasChecksums(fd))
    return MakeError(Code::kUnimplemented,
                     "btrfs would checksum what a guest still changes; 'chattr +C' on a new, empty "
                     "file turns its checksums off");
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_DIRECT) < 0)
    return MakeError(Code::kUnimplemented, "its file system has no direct I/O");
  auto alignment = FindAlignment(fd, sector_bytes);
  if (!alignment.ok()) (void)::fcntl(fd, F_SETFL, flags);
  return alignment;
}

Result<void> DirectRead(int fd, const IoAlignment& alignment, std::span<uint8_t> buffer,
                        uint64_t offset) {
  if (Fits(alignment, buffer.data(), offset, buffer.size()))
    return vmm::PReadAll(fd, buffer, offset);
  AlignedBuffer units(kPieceBytes);
  while (!buffer.empty()) {
    const Window window(alignment, offset, buffer.size());
    const size_t got = TRY(ReadSome(fd, units.span().first(window.whole), window.start));
    if (got < window.skip + window.used)
      return vmm::Error(Code::kOutOfRange, "reading past the end of the file");
    std::memcpy(buffer.data(), units.span().data() + window.skip, window.used);
    buffer = buffer.subspan(window.used);
    offset += window.used;
  }
  return {};
}

Result<void> DirectWrite(int fd, const IoAlignment& alignment, std::span<const uint8_t> buffer,
                         uint64_t offset) {
  if (Fits(alignment, buffer.data(), offset, buffer.size()))
    return vmm::PWriteAll(fd, buffer, offset);
  AlignedBuffer units(kPieceBytes);
  while (!buffer.empty()) {
    const Window window(alignment, offset, buffer.size());
    const std::span<uint8_t> whole = units.span().first(window.whole);
    if (window.used != window.whole) {
      const size_t got = TRY(ReadSome(fd, whole, window.start));
      std::fill(whole.begin() + static_cast<ptrdiff_t>(got), whole.end(), uint8_t{0});
    }
    std::memcpy(whole.data() + window.skip, buffer.data(), window.used);
    TRY_VOID(vmm::PWriteAll(fd, whole, window.start));
    buffer = buffer.subspan(window.used);
    offset += window.used;
  }
  return {};
}

}  // namespace kvmbus::virtdev
