// SPDX-License-Identifier: Apache-2.0
/// \file
/// FakeWorker: a worker as vmmd sees it, which answers as the test tells it.
#pragma once

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <functional>
#include <optional>
#include <string>

#include "vmm/event/loop.h"
#include "vmm/os/fd.h"
#include "vmm/os/unix_socket.h"
#include "worker/worker.pb.h"

namespace kvmbus::tests {

/// A worker's control socket; `answer` gives the reply, or nullopt and the worker hangs up. Who
/// connects finds a process of its own behind it, which ends with the object.
class FakeWorker {
 public:
  using Answer = std::function<std::optional<worker::Reply>(const worker::Request&)>;

  FakeWorker(vmm::Loop& loop, const std::string& path, Answer answer)
      : loop_(loop), listener_(vmm::ListenUnix(path).value()), answer_(std::move(answer)) {
    process_ = ListenInAProcess();
    (void)loop_.Watch(listener_.get(), EPOLLIN, [this](uint32_t) {
      HangUp();
      client_ = vmm::AcceptUnix(listener_.get());
      (void)loop_.Watch(client_.get(), EPOLLIN, [this](uint32_t) { Read(); });
    });
  }
  ~FakeWorker() {
    HangUp();
    loop_.Unwatch(listener_.get());
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
  }
  void HangUp() {
    if (!client_.valid()) return;
    loop_.Unwatch(client_.get());
    client_.Reset();
    in_.clear();
  }

 private:
  /// The socket's peer is who listened last.
  pid_t ListenInAProcess() const {
    int ready[2];
    EXPECT_EQ(::pipe(ready), 0);
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::listen(listener_.get(), 8);
      for (int fd = 3; fd < 1024; ++fd) {
        if (fd != ready[1]) ::close(fd);
      }
      (void)!::write(ready[1], "", 1);
      ::pause();
      ::_exit(0);
    }
    char byte = 1;
    EXPECT_EQ(::read(ready[0], &byte, 1), 1);
    ::close(ready[0]);
    ::close(ready[1]);
    return pid;
  }
  void Read() {
    char buffer[8192];
    const ssize_t n = ::recv(client_.get(), buffer, sizeof(buffer), 0);
    if (n <= 0) return HangUp();
    in_.append(buffer, static_cast<size_t>(n));
    uint32_t size = 0;
    while (in_.size() >= sizeof(size)) {
      std::memcpy(&size, in_.data(), sizeof(size));
      if (in_.size() < sizeof(size) + size) return;
      worker::Message message;
      ASSERT_TRUE(message.ParseFromString(in_.substr(sizeof(size), size)));
      in_.erase(0, sizeof(size) + size);
      auto reply = answer_(message.request());
      if (!reply) return HangUp();
      reply->set_id(message.request().id());
      Send(*reply);
    }
  }
  void Send(const worker::Reply& reply) {
    worker::Message message;
    *message.mutable_reply() = reply;
    const std::string body = message.SerializeAsString();
    const auto size = static_cast<uint32_t>(body.size());
    std::string frame(reinterpret_cast<const char*>(&size), sizeof(size));
    frame += body;
    ASSERT_EQ(::send(client_.get(), frame.data(), frame.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(frame.size()));
  }

  vmm::Loop& loop_;
  pid_t process_ = -1;
  vmm::Fd listener_, client_;
  Answer answer_;
  std::string in_;
};

}  // namespace kvmbus::tests
