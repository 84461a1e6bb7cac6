// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmm/control_server.h"

#include <sys/epoll.h>
#include <unistd.h>

#include "vmm/os/log.h"
#include "vmm/os/unix_socket.h"

namespace kvmbus::cmd {

vmm::Result<std::unique_ptr<ControlServer>> ControlServer::Listen(vmm::Loop& loop,
                                                                  const std::string& path,
                                                                  Handler handler) {
  vmm::Fd listener = TRY(vmm::ListenUnix(path));
  std::unique_ptr<ControlServer> self(
      new ControlServer(loop, std::move(listener), path, std::move(handler)));
  ControlServer* raw = self.get();
  TRY_VOID(loop.Watch(raw->listener_.get(), EPOLLIN, [raw](uint32_t) { raw->Accept(); }));
  return self;
}

ControlServer::ControlServer(vmm::Loop& loop, vmm::Fd listener, std::string path, Handler handler)
    : loop_(loop),
      listener_(std::move(listener)),
      path_(std::move(path)),
      handler_(std::move(handler)) {}

ControlServer::~ControlServer() {
  *alive_ = false;
  loop_.Unwatch(listener_.get());
  ::unlink(path_.c_str());
}

void ControlServer::Accept() {
  vmm::Fd fd = vmm::AcceptUnix(listener_.get());
  if (!fd.valid()) return;
  if (clients_.size() >= kClientLimit) {
    KVMBUS_LOG_LIMITED("control socket: more than {} clients, one is turned away", kClientLimit);
    return;
  }
  const uint64_t id = next_client_++;
  vmm::FramedConnection::Options options;
  options.frame_limit = kFrameLimit;
  options.connection.backlog_limit = kBacklogLimit;
  vmm::FramedConnection::Callbacks callbacks;
  callbacks.frame = [this, id](std::string_view frame) { HandleFrame(id, frame); };
  callbacks.closed = [this, id](const vmm::Error& why) { Drop(id, why); };
  auto client = vmm::FramedConnection::Open(loop_, std::move(fd), options, std::move(callbacks));
  if (client.ok()) clients_[id] = std::move(*client);
}

void ControlServer::HandleFrame(uint64_t id, std::string_view frame) {
  worker::Message message;
  if (!message.ParseFromArray(frame.data(), static_cast<int>(frame.size())) ||
      message.kind_case() != worker::Message::kRequest)
    return Drop(id, vmm::Error(vmm::Code::kInvalidArgument, "a frame that is no request"));
  const uint64_t request_id = message.request().id();
  handler_(message.request(), [this, id, request_id, alive = alive_](worker::Reply reply) {
    if (!*alive) return;
    worker::Message answer;
    *answer.mutable_reply() = std::move(reply);
    answer.mutable_reply()->set_id(request_id);
    Send(id, answer);
  });
}

void ControlServer::Broadcast(const worker::Event& event) {
  worker::Message message;
  *message.mutable_event() = event;
  for (auto client = clients_.begin(); client != clients_.end();) {
    const uint64_t id = client->first;
    ++client;  // Send may drop it
    Send(id, message);
  }
}

void ControlServer::Send(uint64_t id, const worker::Message& message) {
  const auto at = clients_.find(id);
  if (at == clients_.end()) return;
  const auto sent = at->second->Send(message.SerializeAsString());
  if (!sent.ok()) Drop(id, sent.error());
}

void ControlServer::Drop(uint64_t id, const vmm::Error& why) {
  // That a client leaves is no news.
  if (why.code() != vmm::Code::kUnavailable)
    KVMBUS_LOG_LIMITED("control socket: a client is disconnected: {}", why.ToString());
  clients_.erase(id);
}

void ControlServer::Drain() {
  for (const auto& [id, client] : clients_) client->Drain(1000);
}

}  // namespace kvmbus::cmd
