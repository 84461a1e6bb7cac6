// SPDX-License-Identifier: Apache-2.0
#include "vmm/event/connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace kvmbus::vmm {
namespace {

constexpr auto kRoom = static_cast<uint32_t>(EPOLLOUT);

Error PeerHasGone(int sys_errno) {
  return MakeError(Code::kUnavailable, "the peer has gone ({})", std::strerror(sys_errno));
}

}  // namespace

Result<std::unique_ptr<Connection>> Connection::Open(Loop& loop, Fd socket, const Options& options,
                                                     Callbacks callbacks) {
  std::unique_ptr<Connection> self(
      new Connection(loop, std::move(socket), options, std::move(callbacks)));
  Connection* raw = self.get();
  TRY_VOID(
      loop.Watch(raw->socket_.get(), EPOLLIN, [raw](uint32_t events) { raw->OnReady(events); }));
  return self;
}

Connection::Connection(Loop& loop, Fd socket, const Options& options, Callbacks callbacks)
    : loop_(loop),
      socket_(std::move(socket)),
      options_(options),
      callbacks_(std::make_shared<const Callbacks>(std::move(callbacks))) {}

Connection::~Connection() { Close(); }

void Connection::Close() {
  if (!socket_.valid()) return;
  loop_.Unwatch(socket_.get());
  socket_.Reset();
}

void Connection::OnReady(uint32_t events) {
  if (events & kRoom) {
    const auto flushed = Flush();
    if (!flushed.ok()) {
      const auto callbacks = callbacks_;
      return callbacks->closed(flushed.error());
    }
  }
  if (events & ~kRoom) Receive();
}

void Connection::Receive() {
  const auto callbacks = callbacks_;
  char buffer[kReadBytes];
  const ssize_t n = ::recv(socket_.get(), buffer, sizeof(buffer), 0);
  if (n > 0) return callbacks->received({buffer, static_cast<size_t>(n)});
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  const Error why = n < 0 ? PeerHasGone(errno) : Error(Code::kUnavailable, "the peer hung up");
  Close();
  callbacks->closed(why);
}

Result<void> Connection::Send(std::initializer_list<std::string_view> pieces) {
  if (!is_open()) return Error(Code::kUnavailable, "the connection is closed");
  for (const std::string_view piece : pieces) backlog_ += piece;
  if (backlog_.size() > options_.backlog_limit) {
    if (options_.when_full == WhenFull::kClose) {
      Close();
      return MakeError(Code::kResourceExhausted, "the peer does not read: {} bytes wait for it",
                       backlog_.size());
    }
    backlog_.erase(0, backlog_.size() - options_.backlog_limit);
  }
  return Flush();
}

Result<void> Connection::Flush() {
  size_t sent = 0;
  int failure = 0;
  while (sent < backlog_.size()) {
    const ssize_t n =
        ::send(socket_.get(), backlog_.data() + sent, backlog_.size() - sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      failure = errno;
      break;
    }
    sent += static_cast<size_t>(n);
  }
  backlog_.erase(0, sent);
  if (failure != 0 && failure != EAGAIN) return OnSendFailed(failure);
  WatchForRoom(!backlog_.empty());
  return {};
}

Result<void> Connection::OnSendFailed(int sys_errno) {
  if (options_.when_gone == WhenGone::kClose) {
    Close();
    return PeerHasGone(sys_errno);
  }
  // A socket whose peer has gone always has room: to wait for it would be to turn in circles. The
  // other errors are a want of memory: as if there were no room.
  if (sys_errno == EPIPE || sys_errno == ECONNRESET) backlog_.clear();
  WatchForRoom(!backlog_.empty());
  return {};
}

void Connection::WatchForRoom(bool wanted) {
  if (wanted == waits_for_room_) return;
  waits_for_room_ = wanted;
  loop_.ChangeWatch(socket_.get(), EPOLLIN | (wanted ? kRoom : 0));
}

void Connection::Drain(int timeout_ms) {
  while (is_open() && !backlog_.empty()) {
    pollfd waiting = {socket_.get(), POLLOUT, 0};
    if (::poll(&waiting, 1, timeout_ms) <= 0) return;
    const ssize_t n = ::send(socket_.get(), backlog_.data(), backlog_.size(), MSG_NOSIGNAL);
    if (n <= 0) return;
    backlog_.erase(0, static_cast<size_t>(n));
  }
}

}  // namespace kvmbus::vmm
