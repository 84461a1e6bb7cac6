// SPDX-License-Identifier: Apache-2.0
/// \file
/// WorkerLink: a connection to one worker's control socket.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "vmm/event/framed_connection.h"
#include "vmm/event/loop.h"
#include "worker/worker.pb.h"

namespace kvmbus::vmm {

/// Home: the manager's loop.
class WorkerLink {
 public:
  static constexpr uint32_t kFrameLimit = 4u << 20;  ///< bytes
  using ReplyFunction = std::function<void(const Result<worker::Reply>&)>;

  struct Callbacks {
    std::function<void(const worker::Status&)> status;
    std::function<void()> closed;  ///< the worker hung up; the link is dead. Requests were answered
                                   ///< with kUnavailable.
  };

  static Result<std::unique_ptr<WorkerLink>> Connect(Loop& loop, const std::string& path,
                                                     Callbacks callbacks);
  ~WorkerLink();

  /// The process that listens, by the kernel's word.
  pid_t pid() const { return pid_; }
  bool is_open() const { return connection_ != nullptr; }

  /// `reply` comes once: the worker's answer, its failure as an Error, or kDeadlineExceeded.
  void Call(worker::Request request, uint64_t timeout_ns, ReplyFunction reply);

 private:
  struct Pending {
    ReplyFunction reply;
    Loop::TimerId timer;
  };

  WorkerLink(Loop& loop, Callbacks callbacks);
  void HandleFrame(std::string_view frame);
  void Finish(uint64_t id, const Result<worker::Reply>& result);
  void Close();

  Loop& loop_;
  Callbacks callbacks_;
  pid_t pid_ = -1;
  std::unique_ptr<FramedConnection> connection_;  ///< null: the worker is gone
  uint64_t next_id_ = 1;
  std::map<uint64_t, Pending> pending_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvmbus::vmm
