// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/owner_call.h"

#include <sys/epoll.h>

#include <algorithm>
#include <utility>

#include "vmm/os/unix_socket.h"

namespace kvmbus::vmm {

using shared_disk::BytesOf;
using shared_disk::HelloReply;

Result<void> ResultOf(const HelloReply& reply) {
  if (reply.magic == shared_disk::kMagic && reply.code == 0) return {};
  const std::string message(reply.message.begin(),
                            std::find(reply.message.begin(), reply.message.end(), '\0'));
  return Error(
      reply.code >= 1 && reply.code <= 15 ? static_cast<Code>(reply.code) : Code::kInternal,
      message);
}

Result<std::unique_ptr<OwnerCall>> OwnerCall::Start(Loop& loop, const std::string& socket_path,
                                                    const shared_disk::Hello& hello,
                                                    uint64_t timeout_ns, Done done) {
  Fd socket = TRY(ConnectUnix(socket_path));
  TRY_VOID(SendFrame(socket.get(), BytesOf(hello)));
  std::unique_ptr<OwnerCall> self(new OwnerCall(loop, std::move(socket), std::move(done)));
  OwnerCall* raw = self.get();
  TRY_VOID(loop.Watch(raw->socket_.get(), EPOLLIN, [raw](uint32_t) { raw->OnReady(); }));
  raw->timer_ = loop.AddTimer(timeout_ns, [raw] {
    raw->timer_ = 0;
    raw->End(Error(Code::kDeadlineExceeded, "the disk's owner does not answer"));
  });
  return self;
}

OwnerCall::~OwnerCall() {
  loop_.CancelTimer(timer_);
  loop_.Unwatch(socket_.get());
}

void OwnerCall::OnReady() {
  const auto reply = shared_disk::TakeFrame<HelloReply>(socket_.get(), &in_);
  if (!reply.ok()) return End(Error(Code::kUnavailable, "the disk's owner ended; try again"));
  if (*reply) End(ResultOf(**reply));
}

void OwnerCall::End(const Result<void>& result) {
  loop_.Unwatch(socket_.get());
  const Done done = std::exchange(done_, nullptr);
  if (done) done(result);
}

}  // namespace kvmbus::vmm
