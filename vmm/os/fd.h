// SPDX-License-Identifier: Apache-2.0
/// \file
/// Fd: the owner of one file descriptor, and the few calls made on any descriptor.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "vmm/result/result.h"

namespace kvmbus::vmm {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      Reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~Fd() { Reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release() { return std::exchange(fd_, -1); }
  void Reset() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  /// A second descriptor of the same open file (close-on-exec).
  Result<Fd> Duplicate() const;

 private:
  int fd_ = -1;
};

/// A non-blocking, close-on-exec eventfd.
Result<Fd> CreateEventFd();
/// Adds one to an eventfd. Cannot fail on a valid one.
void SignalEventFd(int fd);
/// Empties an eventfd; true if it had been signalled.
bool DrainEventFd(int fd);

/// Whole transfers at an offset; EINTR and short transfers are continued. Reading past the end is
/// kOutOfRange.
Result<void> PReadAll(int fd, std::span<uint8_t> buffer, uint64_t offset);
Result<void> PWriteAll(int fd, std::span<const uint8_t> buffer, uint64_t offset);

}  // namespace kvmbus::vmm
