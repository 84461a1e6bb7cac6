// SPDX-License-Identifier: Apache-2.0
/// \file
/// FramedConnection: a Connection whose bytes are frames, both ways.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "vmm/event/connection.h"
#include "vmm/event/frame_reader.h"

namespace kvmbus::vmm {

/// Home: the loop's thread. Whoever owns it may destroy it in a callback; the frames behind the one
/// that is told are lost then.
class FramedConnection {
 public:
  struct Options {
    uint32_t frame_limit = 0;  ///< bytes of a received frame, without its header
    Connection::Options connection;
  };
  struct Callbacks {
    std::function<void(std::string_view)> frame;  ///< one, whole; it may be empty
    /// The last call. kUnavailable: the peer has gone, maybe in the middle of a frame.
    /// kOutOfRange: it sent a frame beyond the limit. Not called for what Send returned.
    std::function<void(const Error&)> closed;
  };

  static Result<std::unique_ptr<FramedConnection>> Open(Loop& loop, Fd socket,
                                                        const Options& options,
                                                        Callbacks callbacks);
  ~FramedConnection();

  /// One frame, of less than 4 GiB; as Connection::Send.
  Result<void> Send(std::string_view frame);
  /// As Connection::Drain.
  void Drain(int timeout_ms) { connection_->Drain(timeout_ms); }

 private:
  FramedConnection(uint32_t frame_limit, Callbacks callbacks);
  void OnReceived(std::string_view bytes);

  FrameReader reader_;
  const std::shared_ptr<const Callbacks> callbacks_;  ///< shared with a call that destroys this
  std::unique_ptr<Connection> connection_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvmbus::vmm
