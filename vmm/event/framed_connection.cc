// SPDX-License-Identifier: Apache-2.0
#include "vmm/event/framed_connection.h"

namespace kvmbus::vmm {

Result<std::unique_ptr<FramedConnection>> FramedConnection::Open(Loop& loop, Fd socket,
                                                                 const Options& options,
                                                                 Callbacks callbacks) {
  std::unique_ptr<FramedConnection> self(
      new FramedConnection(options.frame_limit, std::move(callbacks)));
  Connection::Callbacks stream;
  stream.received = [raw = self.get()](std::string_view bytes) { raw->OnReceived(bytes); };
  stream.closed = [shared = self->callbacks_](const Error& why) { shared->closed(why); };
  self->connection_ =
      TRY(Connection::Open(loop, std::move(socket), options.connection, std::move(stream)));
  return self;
}

FramedConnection::FramedConnection(uint32_t frame_limit, Callbacks callbacks)
    : reader_(frame_limit), callbacks_(std::make_shared<const Callbacks>(std::move(callbacks))) {}

FramedConnection::~FramedConnection() { *alive_ = false; }

Result<void> FramedConnection::Send(std::string_view frame) {
  KVMBUS_ASSERT(frame.size() <= UINT32_MAX);
  const auto header = FrameHeader(static_cast<uint32_t>(frame.size()));
  return connection_->Send({{header.data(), header.size()}, frame});
}

void FramedConnection::OnReceived(std::string_view bytes) {
  reader_.Append(bytes);
  const auto callbacks = callbacks_;
  const std::shared_ptr<bool> alive = alive_;
  // Whoever is told of a frame may destroy this, or send something and so find the peer gone.
  while (*alive && connection_->is_open()) {
    const auto frame = reader_.Next();
    if (!frame.ok()) {
      connection_->Close();
      return callbacks->closed(frame.error());
    }
    if (!*frame) return;
    callbacks->frame(**frame);
  }
}

}  // namespace kvmbus::vmm
