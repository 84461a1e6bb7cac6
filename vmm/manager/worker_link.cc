// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/worker_link.h"

#include "vmm/os/log.h"
#include "vmm/os/unix_socket.h"

namespace kvmbus::vmm {

Result<std::unique_ptr<WorkerLink>> WorkerLink::Connect(Loop& loop, const std::string& path,
                                                        Callbacks callbacks) {
  Fd fd = TRY(ConnectUnix(path));
  std::unique_ptr<WorkerLink> self(new WorkerLink(loop, std::move(callbacks)));
  WorkerLink* raw = self.get();
  raw->pid_ = TRY(ListenerOf(fd.get()));
  FramedConnection::Options options;
  options.frame_limit = kFrameLimit;
  // A worker's last words are heard though it listens no more.
  options.connection.when_gone = Connection::WhenGone::kReadOn;
  FramedConnection::Callbacks frames;
  frames.frame = [raw](std::string_view frame) { raw->HandleFrame(frame); };
  frames.closed = [raw](const Error& why) {
    if (why.code() != Code::kUnavailable)
      spdlog::error("a worker's connection is closed: {}", why.ToString());
    raw->Close();
  };
  raw->connection_ = TRY(FramedConnection::Open(loop, std::move(fd), options, std::move(frames)));
  return self;
}

WorkerLink::WorkerLink(Loop& loop, Callbacks callbacks)
    : loop_(loop), callbacks_(std::move(callbacks)) {}

WorkerLink::~WorkerLink() {
  *alive_ = false;
  for (auto& [id, pending] : pending_) loop_.CancelTimer(pending.timer);
}

void WorkerLink::Call(worker::Request request, uint64_t timeout_ns, ReplyFunction reply) {
  if (!connection_) return reply(Error(Code::kUnavailable, "the worker has ended, or hung up"));
  const uint64_t id = next_id_++;
  request.set_id(id);
  worker::Message message;
  *message.mutable_request() = std::move(request);
  const Loop::TimerId timer = loop_.AddTimer(timeout_ns, [this, id] {
    Finish(id, Error(Code::kDeadlineExceeded,
                     "the worker does not answer; turn the virtual machine off, or kill its worker "
                     "process"));
  });
  pending_[id] = {std::move(reply), timer};
  (void)connection_->Send(message.SerializeAsString());  // gone: reading will say so
}

void WorkerLink::HandleFrame(std::string_view frame) {
  worker::Message message;
  if (!message.ParseFromArray(frame.data(), static_cast<int>(frame.size()))) return Close();
  if (message.has_event() && message.event().has_status())
    return callbacks_.status(message.event().status());
  if (!message.has_reply()) return;
  const worker::Reply& reply = message.reply();
  if (reply.has_failure()) {
    return Finish(reply.id(),
                  Error(CodeFromNumber(reply.failure().code()), reply.failure().message()));
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
  if (!connection_) return;
  connection_.reset();
  const std::shared_ptr<bool> alive = alive_;
  while (*alive && !pending_.empty())
    Finish(pending_.begin()->first, Error(Code::kUnavailable, "the worker has ended, or hung up"));
  if (*alive && callbacks_.closed) callbacks_.closed();
}

}  // namespace kvmbus::vmm
