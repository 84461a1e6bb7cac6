// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmm/control_server.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

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
  for (auto& [id, client] : clients_) loop_.Unwatch(client.fd.get());
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
  const int raw = fd.get();
  clients_[id].fd = std::move(fd);
  if (!loop_.Watch(raw, EPOLLIN, [this, id](uint32_t events) { OnClientReady(id, events); }).ok())
    clients_.erase(id);
}

void ControlServer::OnClientReady(uint64_t id, uint32_t events) {
  if ((events & EPOLLOUT) && !Flush(id)) return;
  if ((events & ~static_cast<uint32_t>(EPOLLOUT)) && !ReadFrames(id)) Drop(id);
}

bool ControlServer::ReadFrames(uint64_t id) {
  char buffer[8192];
  const ssize_t n = ::recv(clients_[id].fd.get(), buffer, sizeof(buffer), 0);
  if (n < 0) return errno == EAGAIN || errno == EINTR;
  if (n == 0) return false;
  clients_[id].in.append(buffer, static_cast<size_t>(n));
  for (;;) {
    const auto at = clients_.find(id);
    if (at == clients_.end()) return true;  // dropped by its own request
    std::string& in = at->second.in;
    uint32_t size;
    if (in.size() < sizeof(size)) return true;
    std::memcpy(&size, in.data(), sizeof(size));
    if (size > kFrameLimit) {
      KVMBUS_LOG_LIMITED("control socket: a frame of {} bytes, the limit is {}", size, kFrameLimit);
      return false;
    }
    if (in.size() - sizeof(size) < size) return true;
    const std::string frame = in.substr(sizeof(size), size);
    in.erase(0, sizeof(size) + size);
    HandleFrame(id, frame);
  }
}

void ControlServer::HandleFrame(uint64_t id, const std::string& frame) {
  worker::Message message;
  if (!message.ParseFromString(frame) || message.kind_case() != worker::Message::kRequest) {
    KVMBUS_LOG_LIMITED("control socket: a frame that is no request");
    Drop(id);
    return;
  }
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
  std::vector<uint64_t> ids;
  for (const auto& [id, client] : clients_) ids.push_back(id);
  for (const uint64_t id : ids) Send(id, message);
}

void ControlServer::Send(uint64_t id, const worker::Message& message) {
  const auto at = clients_.find(id);
  if (at == clients_.end()) return;
  const std::string body = message.SerializeAsString();
  const auto size = static_cast<uint32_t>(body.size());
  at->second.out.append(reinterpret_cast<const char*>(&size), sizeof(size));
  at->second.out += body;
  if (at->second.out.size() > kBacklogLimit) {
    KVMBUS_LOG_LIMITED("control socket: a client that does not read is dropped");
    Drop(id);
    return;
  }
  Flush(id);
}

bool ControlServer::Flush(uint64_t id) {
  Client& client = clients_[id];
  while (!client.out.empty()) {
    const ssize_t n = ::send(client.fd.get(), client.out.data(), client.out.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EAGAIN) {
      Drop(id);
      return false;
    }
    if (n < 0) break;
    client.out.erase(0, static_cast<size_t>(n));
  }
  const bool wants_write = !client.out.empty();
  if (wants_write != client.wants_write) {
    client.wants_write = wants_write;
    loop_.Unwatch(client.fd.get());
    const uint32_t events = EPOLLIN | (wants_write ? static_cast<uint32_t>(EPOLLOUT) : 0u);
    if (!loop_
             .Watch(client.fd.get(), events,
                    [this, id](uint32_t ready) { OnClientReady(id, ready); })
             .ok()) {
      Drop(id);
      return false;
    }
  }
  return true;
}

void ControlServer::Drop(uint64_t id) {
  const auto at = clients_.find(id);
  if (at == clients_.end()) return;
  loop_.Unwatch(at->second.fd.get());
  clients_.erase(at);
}

void ControlServer::Drain() {
  for (auto& [id, client] : clients_) {
    while (!client.out.empty()) {
      pollfd waiting = {client.fd.get(), POLLOUT, 0};
      if (::poll(&waiting, 1, 1000) <= 0) break;
      const ssize_t n = ::send(client.fd.get(), client.out.data(), client.out.size(), MSG_NOSIGNAL);
      if (n <= 0) break;
      client.out.erase(0, static_cast<size_t>(n));
    }
  }
}

}  // namespace kvmbus::cmd
