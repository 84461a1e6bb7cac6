// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/unix_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "vmm/os/clock.h"

namespace kvmbus::vmm {
namespace {

Result<sockaddr_un> Address(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path))
    return MakeError(Code::kInvalidArgument, "socket path '{}' is longer than {} characters", path,
                     sizeof(address.sun_path) - 1);
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<Fd> StreamSocket() {
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return Error::FromErrno(errno, "socket");
  return fd;
}

}  // namespace

Result<Fd> ListenUnix(const std::string& path, mode_t mode) {
  const sockaddr_un address = TRY(Address(path));
  Fd fd = TRY(StreamSocket());
  ::unlink(path.c_str());
  // The mode is set before anybody can connect: listen comes last.
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) < 0 ||
      ::chmod(path.c_str(), mode) < 0 || ::listen(fd.get(), 64) < 0)
    return Error::FromErrno(errno, fmt::format("listening on '{}'", path));
  return fd;
}

Fd AcceptUnix(int listener) {
  return Fd(::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
}

Result<Fd> ConnectUnix(const std::string& path) {
  const sockaddr_un address = TRY(Address(path));
  Fd fd = TRY(StreamSocket());
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) < 0)
    return Error::FromErrno(errno, fmt::format("connecting to '{}'", path));
  return fd;
}

Result<void> SendFrame(int socket, std::span<const uint8_t> frame, std::span<const int> fds) {
  KVMBUS_ASSERT(fds.size() <= kMaxSentFds);
  iovec piece = {const_cast<uint8_t*>(frame.data()), frame.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxSentFds * sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  ssize_t n;
  do {
    n = ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (n < 0 && errno == EINTR);
  if (n == static_cast<ssize_t>(frame.size())) return {};
  return Error(Code::kUnavailable, n < 0 && errno != EAGAIN
                                       ? fmt::format("the peer has gone ({})", std::strerror(errno))
                                       : std::string("the peer does not read"));
}

Result<size_t> ReceiveSome(int socket, std::span<uint8_t> buffer, std::vector<Fd>* fds,
                           size_t max_fds) {
  iovec piece = {buffer.data(), buffer.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxSentFds * sizeof(int))];
  msghdr message = {};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t n;
  do {
    n = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (n < 0 && errno == EINTR);
  if (n < 0 && errno == EAGAIN) return size_t{0};
  if (n < 0) return Error(Code::kUnavailable, "the peer has gone");
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int raw;
      std::memcpy(&raw, CMSG_DATA(header) + i * sizeof(int), sizeof(raw));
      Fd fd(raw);
      if (fds != nullptr && fds->size() < max_fds) fds->push_back(std::move(fd));
    }
  }
  if (n == 0) return Error(Code::kUnavailable, "the peer has gone");
  return static_cast<size_t>(n);
}

Result<void> ReceiveFrame(int socket, std::span<uint8_t> buffer, int timeout_ms) {
  const uint64_t end =
      SystemClock().MonotonicNs() + static_cast<uint64_t>(timeout_ms) * uint64_t{1'000'000};
  while (!buffer.empty()) {
    const size_t bytes = TRY(ReceiveSome(socket, buffer));
    buffer = buffer.subspan(bytes);
    if (bytes != 0) continue;
    const uint64_t now = SystemClock().MonotonicNs();
    if (now >= end) return Error(Code::kDeadlineExceeded, "the peer does not answer");
    pollfd waiting = {socket, POLLIN, 0};
    (void)::poll(&waiting, 1, static_cast<int>((end - now) / 1'000'000) + 1);
  }
  return {};
}

Result<pid_t> ListenerOf(int fd) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
    return Error::FromErrno(errno, "asking who listens");
  return peer.pid;
}

}  // namespace kvmbus::vmm
