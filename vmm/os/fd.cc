// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/fd.h"

#include <fcntl.h>
#include <sys/eventfd.h>

#include <cerrno>

namespace kvmbus::vmm {

Result<Fd> Fd::Duplicate() const {
  const int copy = ::fcntl(fd_, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return Error::FromErrno(errno, "duplicating a file descriptor");
  return Fd(copy);
}

Result<Fd> CreateEventFd() {
  const int fd = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd < 0) return Error::FromErrno(errno, "eventfd");
  return Fd(fd);
}

void SignalEventFd(int fd) {
  const uint64_t one = 1;
  // EAGAIN means that the counter is full: it is signalled already.
  [[maybe_unused]] const ssize_t n = ::write(fd, &one, sizeof(one));
}

bool DrainEventFd(int fd) {
  uint64_t count;
  return ::read(fd, &count, sizeof(count)) == static_cast<ssize_t>(sizeof(count));
}

Result<void> PReadAll(int fd, std::span<uint8_t> buffer, uint64_t offset) {
  while (!buffer.empty()) {
    const ssize_t n = ::pread(fd, buffer.data(), buffer.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error::FromErrno(errno, "reading");
    if (n == 0) return Error(Code::kOutOfRange, "reading past the end of the file");
    buffer = buffer.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return {};
}

Result<void> PWriteAll(int fd, std::span<const uint8_t> buffer, uint64_t offset) {
  while (!buffer.empty()) {
    const ssize_t n = ::pwrite(fd, buffer.data(), buffer.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error::FromErrno(errno, "writing");
    buffer = buffer.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return {};
}

}  // namespace kvmbus::vmm
