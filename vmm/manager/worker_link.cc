// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/worker_link.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "vmm/os/log.h"
#include "vmm/os/unix_socket.h"

namespace kvmbus::vmm {

Result<std::unique_ptr<WorkerLink>> WorkerLink::Connect(Loop& loop, const std::string& path,
                                                        Callbacks callbacks) {
  Fd fd = TRY(ConnectUnix(path));
  std::unique_ptr<WorkerLink> self(new WorkerLink(loop, std::move(fd), std::move(callbacks)));
  WorkerLink* raw = self.get();
  TRY_VOID(loop.Watch(raw->fd_.get(), EPOLLIN, [raw](uint32_t) { raw->OnReady(); }));
  return self;
}

WorkerLink::WorkerLink(Loop& loop, Fd fd, Callbacks callbacks)
    : loop_(loop), fd_(std::move(fd)), callbacks_(std::move(callbacks)) {}

WorkerLink::~WorkerLink() {
  *alive_ = false;
  if (fd_.valid()) loop_.Unwatch(fd_.get());
  for (auto& [id, pending] : pending_) loop_.CancelTimer(pending.timer);
}

void WorkerLink::Call(worker::Request request, uint64_t timeout_ns, ReplyFunction reply) {
  if (!fd_.valid()) return reply(Error(Code::kUnavailable, "the worker is gone"));
  const uint64_t id = next_id_++;
  request.set_id(id);
  worker::Message message;
  *message.mutable_request() = std::move(request);
  const std::string body = message.SerializeAsString();
  const auto size = static_cast<uint32_t>(body.size());
  out_.append(reinterpret_cast<const char*>(&size), sizeof(size));
  out_ += body;
  const Loop::TimerId timer = loop_.AddTimer(timeout_ns, [this, id] {
    Finish(id, Error(Code::kDeadlineExceeded,
                     "the worker does not answer; turn the virtual machine off, or kill its worker "
                     "process"));
  });
  pending_[id] = {std::move(reply), timer};
  Flush();
}

void WorkerLink::Flush() {
  while (fd_.valid() && !out_.empty()) {
    const ssize_t n = ::send(fd_.get(), out_.data(), out_.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) break;  // full: the watch goes on; gone: reading will say so
    out_.erase(0, static_cast<size_t>(n));
  }
  const bool wants_write = !out_.empty();
  if (!fd_.valid() || wants_write == wants_write_) return;
  wants_write_ = wants_write;
  loop_.Unwatch(fd_.get());
  const uint32_t events = EPOLLIN | (wants_write ? static_cast<uint32_t>(EPOLLOUT) : 0u);
  (void)loop_.Watch(fd_.get(), events, [this](uint32_t ready) {
    if (ready & EPOLLOUT) Flush();
    if (ready & ~static_cast<uint32_t>(EPOLLOUT)) OnReady();
  });
}

void WorkerLink::OnReady() {
  char buffer[8192];
  const ssize_t n = ::recv(fd_.get(), buffer, sizeof(buffer), 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) return Close();
  in_.append(buffer, static_cast<size_t>(n));
  const std::shared_ptr<bool> alive = alive_;
  while (in_.size() >= sizeof(uint32_t)) {
    uint32_t size;
    std::memcpy(&size, in_.data(), sizeof(size));
    if (size > kFrameLimit) {
      spdlog::error("a worker sent a frame of {} bytes; its connection is closed", size);
      return Close();
    }
    if (in_.size() - sizeof(size) < size) return;
    const std::string frame = in_.substr(sizeof(size), size);
    in_.erase(0, sizeof(size) + size);
    HandleFrame(frame);
    if (!*alive || !fd_.valid()) return;
  }
}

void WorkerLink::HandleFrame(std::string_view frame) {
  worker::Message message;
  if (!message.ParseFromArray(frame.data(), static_cast<int>(frame.size()))) return Close();
  if (message.has_event() && message.event().has_status())
    return callbacks_.status(message.event().status());
  if (!message.has_reply()) return;
  const worker::Reply& reply = message.reply();
  if (reply.has_failure()) {
    const uint32_t code = reply.failure().code();
    return Finish(reply.id(),
                  Error(code >= 1 && code <= 15 ? static_cast<Code>(code) : Code::kUnknown,
                        reply.failure().message()));
  }
  Finish(reply.id(), reply);
}

void WorkerLink::Finish(uint64_t id, const Result<worker::Reply>& result) {
  auto node = pending_.extract(id);
  if (node.empty()) return;
  loop_.CancelTimer(node.mapped().timer);
  node.mapped().reply(result);
}

void WorkerLink::Close() {
  if (!fd_.valid()) return;
  loop_.Unwatch(fd_.get());
  fd_.Reset();
  const std::shared_ptr<bool> alive = alive_;
  while (*alive && !pending_.empty())
    Finish(pending_.begin()->first, Error(Code::kUnavailable, "the worker ended"));
  if (*alive && callbacks_.closed) callbacks_.closed();
}

}  // namespace kvmbus::vmm
