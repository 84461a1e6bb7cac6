// SPDX-License-Identifier: Apache-2.0
/// \file
/// Unix stream sockets: non-blocking, close-on-exec.
#pragma once

#include <sys/types.h>

#include <span>
#include <string>
#include <vector>

#include "vmm/os/fd.h"

namespace kvmbus::vmm {

/// Binds and listens; a stale socket file at `path` is removed first.
Result<Fd> ListenUnix(const std::string& path, mode_t mode = 0660);
/// An accepted connection, or an invalid Fd when there is none waiting.
Fd AcceptUnix(int listener);
Result<Fd> ConnectUnix(const std::string& path);

/// Most descriptors that one message of ours carries.
inline constexpr size_t kMaxSentFds = 4;
/// Sends the whole of a short frame, with descriptors, and never waits: kUnavailable if the peer
/// has gone, or does not read.
Result<void> SendFrame(int socket, std::span<const uint8_t> frame, std::span<const int> fds = {});
/// Receives some of what has come, 0 bytes if nothing has, and appends the descriptors (those
/// beyond `max_fds` in the vector are closed). Never waits. kUnavailable: the peer has gone.
Result<size_t> ReceiveSome(int socket, std::span<uint8_t> buffer, std::vector<Fd>* fds = nullptr,
                           size_t max_fds = 0);
/// Fills the buffer, waiting at most `timeout_ms` in all: kUnavailable, kDeadlineExceeded.
Result<void> ReceiveFrame(int socket, std::span<uint8_t> buffer, int timeout_ms);

/// The process that listened when this end connected (unix(7), SO_PEERCRED).
Result<pid_t> ListenerOf(int fd);

}  // namespace kvmbus::vmm
