// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

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

}  // namespace kvmbus::vmm
