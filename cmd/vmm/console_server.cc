// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmm/console_server.h"

#include <sys/epoll.h>
#include <unistd.h>

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
    ++client;  // Send may drop it
    Send(id, bytes);
  }
}

void ConsoleServer::Accept() {
  vmm::Fd fd = vmm::AcceptUnix(listener_.get());
  if (!fd.valid() || clients_.size() >= kClientLimit) return;
  const uint64_t id = next_client_++;
  vmm::Connection::Options options;
  options.backlog_limit = kBacklogLimit;
  options.when_full = vmm::Connection::WhenFull::kLoseOldest;
  vmm::Connection::Callbacks callbacks;
  callbacks.received = [this](std::string_view typed) { input_(typed); };
  callbacks.closed = [this, id](const vmm::Error&) { clients_.erase(id); };
  auto client = vmm::Connection::Open(loop_, std::move(fd), options, std::move(callbacks));
  if (!client.ok()) return;
  clients_[id] = std::move(*client);
  Send(id, history_);
}

void ConsoleServer::Send(uint64_t id, std::string_view bytes) {
  if (!clients_[id]->Send({bytes}).ok()) clients_.erase(id);
}

}  // namespace kvmbus::cmd
