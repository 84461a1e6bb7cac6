// SPDX-License-Identifier: Apache-2.0
#include "vmm/memory/userfault.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "vmm/os/file.h"

namespace kvmbus::vmm {
namespace {

// Of newer kernels than Debian 12's headers may know.
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif

constexpr uint64_t kFeatures = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS |
                               UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

Result<void> Call(int fd, unsigned long request, void* argument, const char* name) {
  if (::ioctl(fd, request, argument) < 0) return Error::FromErrno(errno, name);
  return {};
}

}  // namespace

Result<Userfault> Userfault::Create(uint64_t page_bytes) {
  Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (!fd.valid() && errno == EPERM)
    return Error(Code::kPermissionDenied,
                 "userfaultfd is not allowed: give the worker CAP_SYS_PTRACE, or set "
                 "vm.unprivileged_userfaultfd to 1");
  if (!fd.valid()) return Error::FromErrno(errno, "userfaultfd");
  uffdio_api api = {};
  api.api = UFFD_API;
  api.features = kFeatures;
  if (::ioctl(fd.get(), UFFDIO_API, &api) < 0)
    return Error(Code::kUnimplemented,
                 "this kernel's userfaultfd cannot protect shared memory: Linux 5.19 can");
  return Userfault(std::move(fd), page_bytes);
}

Result<void> Userfault::Register(uint64_t address, uint64_t size, Kind kind) const {
  uffdio_register call = {};
  call.range = {address, size};
  call.mode = kind == Kind::kMissing ? UFFDIO_REGISTER_MODE_MISSING : UFFDIO_REGISTER_MODE_WP;
  return Call(fd_.get(), UFFDIO_REGISTER, &call, "UFFDIO_REGISTER");
}

Result<void> Userfault::Unregister(uint64_t address, uint64_t size) const {
  uffdio_range range = {address, size};
  TRY_VOID(Call(fd_.get(), UFFDIO_UNREGISTER, &range, "UFFDIO_UNREGISTER"));
  return Wake(address, size);  // the kernel wakes those alone who wait for missing pages
}

Result<void> Userfault::WriteProtect(uint64_t address, uint64_t size) const {
  uffdio_writeprotect call = {{address, size}, UFFDIO_WRITEPROTECT_MODE_WP};
  return Call(fd_.get(), UFFDIO_WRITEPROTECT, &call, "UFFDIO_WRITEPROTECT");
}

Result<void> Userfault::Unprotect(uint64_t address, uint64_t size) const {
  uffdio_writeprotect call = {{address, size}, 0};
  return Call(fd_.get(), UFFDIO_WRITEPROTECT, &call, "UFFDIO_WRITEPROTECT");
}

Result<void> Userfault::Wake(uint64_t address, uint64_t size) const {
  uffdio_range range = {address, size};
  return Call(fd_.get(), UFFDIO_WAKE, &range, "UFFDIO_WAKE");
}

Result<void> Userfault::Fill(uint64_t address, std::span<const uint8_t> pages) const {
  return FillWith(address, pages.size(), pages.data());
}

Result<void> Userfault::FillZero(uint64_t address, uint64_t size) const {
  return FillWith(address, size, nullptr);
}

/// A call stops at a page that is there; the rest is for another one.
Result<void> Userfault::FillWith(uint64_t address, uint64_t size, const uint8_t* pages) const {
  for (uint64_t at = 0; at < size;) {
    int64_t filled = 0;
    int failed = 0;
    if (pages != nullptr) {
      uffdio_copy call = {};
      call.dst = address + at;
      call.src = reinterpret_cast<uint64_t>(pages + at);
      call.len = size - at;
      if (::ioctl(fd_.get(), UFFDIO_COPY, &call) < 0) failed = errno;
      filled = call.copy;
    } else {
      uffdio_zeropage call = {};
      call.range = {address + at, size - at};
      if (::ioctl(fd_.get(), UFFDIO_ZEROPAGE, &call) < 0) failed = errno;
      filled = call.zeropage;
    }
    if (failed != 0 && failed != EAGAIN && failed != EEXIST)
      return Error::FromErrno(failed, pages != nullptr ? "UFFDIO_COPY" : "UFFDIO_ZEROPAGE");
    if (filled > 0) at += static_cast<uint64_t>(filled);
    if (failed == EEXIST) {
      TRY_VOID(Wake(address + at, page_bytes_));
      at += page_bytes_;
    }
  }
  return {};
}

std::optional<Userfault::Fault> Userfault::Wait(int stop) const {
  for (;;) {
    pollfd polled[2] = {{fd_.get(), POLLIN, 0}, {stop, POLLIN, 0}};
    if (::poll(polled, 2, -1) < 0 && errno != EINTR) return std::nullopt;
    if (polled[1].revents != 0) return std::nullopt;
    uffd_msg message;
    if (::read(fd_.get(), &message, sizeof(message)) != static_cast<ssize_t>(sizeof(message)))
      continue;  // another thread was quicker, or the fault was resolved meanwhile
    if (message.event != UFFD_EVENT_PAGEFAULT) continue;
    const bool protect = (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0;
    return Fault{message.arg.pagefault.address & ~(page_bytes_ - 1),
                 protect ? Kind::kWriteProtect : Kind::kMissing};
  }
}

}  // namespace kvmbus::vmm
