// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmm/console_server.h"

#include <sys/socket.h>

#include <cerrno>

#include "vmm/os/unix_socket.h"

namespace kvmbus::cmd {
namespace {

/// Keeps the last `limit` bytes.
void TrimFront(std::string& text, size_t limit) {
  if (text.size() > limit) text.erase(0, text.size() - limit);
}

}  // namespace

vmm::Result<std::unique_ptr<ConsoleServer>> ConsoleServer::Listen(
    vmm::Loop& loop, const std::string& path, std::function<void(std::string_view)> input) {
  std::unique_ptr<ConsoleServer> self(
      new ConsoleServer(loop, TRY(vmm::ListenUnix(path)), path, std::move(input)));
  ConsoleServer* raw = self.get();
  raw->output_ready_ = TRY(vmm::CreateEventFd());
  TRY_VOID(loop.Watch(raw->output_ready_.get(), EPOLLIN, [raw](uint32_t) { raw->OnOutput(); }));
  TRY_VOID(loop.Watch(raw->listener_.get(), EPOLLIN, [raw](uint32_t) { raw->Accept(); }));
  return self;
}

ConsoleServer::ConsoleServer(vmm::Loop& loop, vmm::Fd listener, std::string path,
                             std::function<void(std::string_view)> input)
    : loop_(loop),
      listener_(std::move(listener)),
      path_(std::move(path)),
      input_(std::move(input)) {}

ConsoleServer::~ConsoleServer() {
  OnOutput();  // the last words
  loop_.Unwatch(listener_.get());
  if (output_ready_.valid()) loop_.Unwatch(output_ready_.get());
  for (auto& [id, client] : clients_) loop_.Unwatch(client.fd.get());
  ::unlink(path_.c_str());
}

void ConsoleServer::Write(std::string_view bytes) {
  bool first;
  {
    std::lock_guard lock(mutex_);
    first = pending_.empty();
    pending_ += bytes;
    TrimFront(pending_, kBacklogLimit);
  }
  if (first) vmm::SignalEventFd(output_ready_.get());
}

void ConsoleServer::OnOutput() {
  if (output_ready_.valid()) vmm::DrainEventFd(output_ready_.get());
  std::string bytes;
  {
    std::lock_guard lock(mutex_);
    bytes.swap(pending_);
  }
  if (bytes.empty()) return;
  history_ += bytes;
  TrimFront(history_, kHistoryBytes);
  for (auto client = clients_.begin(); client != clients_.end();) {
    const uint64_t id = client->first;
    ++client;  // Queue may drop it
    Queue(id, bytes);
  }
}

void ConsoleServer::Accept() {
  vmm::Fd fd = vmm::AcceptUnix(listener_.get());
  if (!fd.valid() || clients_.size() >= kClientLimit) return;
  const uint64_t id = next_client_++;
  const int raw = fd.get();
  clients_[id].fd = std::move(fd);
  if (!loop_.Watch(raw, EPOLLIN, [this, id](uint32_t events) { OnClientReady(id, events); }).ok()) {
    clients_.erase(id);
    return;
  }
  Queue(id, history_);
}

void ConsoleServer::OnClientReady(uint64_t id, uint32_t events) {
  if (events & EPOLLOUT) Flush(id);
  const auto at = clients_.find(id);
  if (at == clients_.end() || !(events & ~static_cast<uint32_t>(EPOLLOUT))) return;
  char buffer[4096];
  const ssize_t n = ::recv(at->second.fd.get(), buffer, sizeof(buffer), 0);
  if (n > 0) {
    input_({buffer, static_cast<size_t>(n)});
  } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
    Drop(id);
  }
}

void ConsoleServer::Queue(uint64_t id, std::string_view bytes) {
  Client& client = clients_[id];
  client.out += bytes;
  TrimFront(client.out, kBacklogLimit);
  Flush(id);
}

void ConsoleServer::Flush(uint64_t id) {
  Client& client = clients_[id];
  while (!client.out.empty()) {
    const ssize_t n = ::send(client.fd.get(), client.out.data(), client.out.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EAGAIN) return Drop(id);
    if (n < 0) break;
    client.out.erase(0, static_cast<size_t>(n));
  }
  const bool wants_write = !client.out.empty();
  if (wants_write == client.wants_write) return;
  client.wants_write = wants_write;
  loop_.Unwatch(client.fd.get());
  const uint32_t events = EPOLLIN | (wants_write ? static_cast<uint32_t>(EPOLLOUT) : 0u);
  if (!loop_
           .Watch(client.fd.get(), events, [this, id](uint32_t ready) { OnClientReady(id, ready); })
           .ok())
    Drop(id);
}

void ConsoleServer::Drop(uint64_t id) {
  const auto at = clients_.find(id);
  if (at == clients_.end()) return;
  loop_.Unwatch(at->second.fd.get());
  clients_.erase(at);
}

}  // namespace kvmbus::cmd
