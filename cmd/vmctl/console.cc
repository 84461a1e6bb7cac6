// SPDX-License-Identifier: Apache-2.0
// vmctl vm console: bytes between the terminal (or a pipe) and a VM's serial port.
#include <poll.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "cmd/vmctl/commands.h"
#include "cmd/vmctl/exit_codes.h"
#include "vmm/os/unix_socket.h"

namespace kvmbus::cmd {
namespace {

constexpr char kEscape = 0x1d;  // Ctrl-]

/// A terminal in raw mode for as long as this lives; nothing for a pipe.
class RawTerminal {
 public:
  RawTerminal() : active_(::isatty(STDIN_FILENO) != 0 && ::tcgetattr(STDIN_FILENO, &before_) == 0) {
    if (!active_) return;
    termios raw = before_;
    ::cfmakeraw(&raw);
    ::tcsetattr(STDIN_FILENO, TCSANOW, &raw);
  }
  ~RawTerminal() {
    if (active_) ::tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  bool active() const { return active_; }

 private:
  termios before_{};
  bool active_;
};

bool SendAll(int fd, const char* data, size_t size) {
  while (size != 0) {
    const ssize_t n = ::send(fd, data, size, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) {
      pollfd room = {fd, POLLOUT, 0};
      ::poll(&room, 1, -1);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    data += n;
    size -= static_cast<size_t>(n);
  }
  return true;
}

}  // namespace

int RunConsole(const std::string& socket_path) {
  const auto connected = vmm::ConnectUnix(socket_path);
  if (!connected.ok()) {
    std::fprintf(stderr, "vmctl: its console is not there (%s): is it running?\n",
                 connected.error().ToString().c_str());
    return ExitCodeOf(vmm::Code::kFailedPrecondition);
  }
  const int fd = connected->get();
  const RawTerminal terminal;
  if (terminal.active()) std::fprintf(stderr, "Connected; leave with Ctrl-]\r\n");
  pollfd watched[2] = {{fd, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
  char buffer[4096];
  for (;;) {
    if (::poll(watched, 2, -1) < 0 && errno != EINTR) return kExitFailed;
    if (watched[0].revents != 0) {
      const ssize_t n = ::recv(fd, buffer, sizeof(buffer), 0);
      if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        return kExitDone;  // the VM is off
      if (n > 0 && ::write(STDOUT_FILENO, buffer, static_cast<size_t>(n)) < 0) return kExitDone;
    }
    if (watched[1].revents != 0) {
      const ssize_t n = ::read(STDIN_FILENO, buffer, sizeof(buffer));
      if (n <= 0) {
        watched[1].fd = -1;  // a pipe has ended: the output still matters
        continue;
      }
      const auto* escape =
          static_cast<const char*>(std::memchr(buffer, kEscape, static_cast<size_t>(n)));
      const size_t size = escape == nullptr || !terminal.active()
                              ? static_cast<size_t>(n)
                              : static_cast<size_t>(escape - buffer);
      if (!SendAll(fd, buffer, size)) return kExitDone;
      if (size != static_cast<size_t>(n)) return kExitDone;
    }
  }
}

}  // namespace kvmbus::cmd
