// SPDX-License-Identifier: Apache-2.0
/// \file
/// Connection: a non-blocking stream socket on a Loop, with a queue for what the peer has not taken
/// yet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>

#include "vmm/event/loop.h"
#include "vmm/os/fd.h"

namespace kvmbus::vmm {

/// Home: the loop's thread. Whoever owns it may destroy it in a callback.
class Connection {
 public:
  /// Most bytes that are taken at once: a peer that talks without an end does not hold up the loop.
  static constexpr size_t kReadBytes = 8192;

  /// What becomes of a backlog that is longer than its limit.
  enum class WhenFull { kClose, kLoseOldest };
  /// What a peer means that takes no more bytes, since it has gone. With kReadOn what it said
  /// before is still received, and the end of that closes the connection; what is sent meanwhile is
  /// lost.
  enum class WhenGone { kClose, kReadOn };

  struct Options {
    size_t backlog_limit = SIZE_MAX;  ///< bytes that were sent and that the kernel has no room for
    WhenFull when_full = WhenFull::kClose;
    WhenGone when_gone = WhenGone::kClose;
  };
  struct Callbacks {
    std::function<void(std::string_view)> received;  ///< 1 to kReadBytes
    /// The last call. kUnavailable: the peer has gone. Not called for what Send returned.
    std::function<void(const Error&)> closed;
  };

  static Result<std::unique_ptr<Connection>> Open(Loop& loop, Fd socket, const Options& options,
                                                  Callbacks callbacks);
  ~Connection();

  /// Sends the pieces, one after the other, as far as the kernel has room, and queues the rest.
  /// Calls nobody back. After an error the connection is closed: kUnavailable, the peer has gone;
  /// kResourceExhausted, it does not read.
  Result<void> Send(std::initializer_list<std::string_view> pieces);
  /// Blocks until the backlog is sent, the peer has gone, or it took nothing for `timeout_ms`. For
  /// a process that ends.
  void Drain(int timeout_ms);
  /// Nothing is called after it. No-op on a closed connection.
  void Close();
  bool is_open() const { return socket_.valid(); }

 private:
  Connection(Loop& loop, Fd socket, const Options& options, Callbacks callbacks);
  void OnReady(uint32_t events);
  void Receive();
  /// As Send, of the backlog.
  Result<void> Flush();
  Result<void> OnSendFailed(int sys_errno);
  void WatchForRoom(bool wanted);

  Loop& loop_;
  Fd socket_;  ///< invalid: closed
  const Options options_;
  const std::shared_ptr<const Callbacks> callbacks_;  ///< shared with a call that destroys this
  std::string backlog_;
  bool waits_for_room_ = false;
};

}  // namespace kvmbus::vmm
