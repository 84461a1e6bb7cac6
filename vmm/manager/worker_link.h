// SPDX-License-Identifier: Apache-2.0
/// \file
/// WorkerLink: a connection to one worker's control socket.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "vmm/event/loop.h"
#include "worker/worker.pb.h"

namespace kvmbus::vmm {

/// Home: the manager's loop.
class WorkerLink {
 public:
  static constexpr uint32_t kFrameLimit = 4u << 20;
  using ReplyFunction = std::function<void(const Result<worker::Reply>&)>;

  struct Callbacks {
    std::function<void(const worker::Status&)> status;
    std::function<void()> closed;  ///< the worker hung up; the link is dead. Requests were answered
                                   ///< with kUnavailable.
  };

  static Result<std::unique_ptr<WorkerLink>> Connect(Loop& loop, const std::string& path,
                                                     Callbacks callbacks);
  ~WorkerLink();

  /// `reply` comes once: the worker's answer, its failure as an Error, or kDeadlineExceeded.
  void Call(worker::Request request, uint64_t timeout_ns, ReplyFunction reply);

 private:
  struct Pending {
    ReplyFunction reply;
    Loop::TimerId timer;
  };

  WorkerLink(Loop& loop, Fd fd, Callbacks callbacks);
  void OnReady();
  void HandleFrame(std::string_view frame);
  void Finish(uint64_t id, const Result<worker::Reply>& result);
  void Close();
  void Flush();

  Loop& loop_;
  Fd fd_;
  Callbacks callbacks_;
  std::string in_;
  std::string out_;
  bool wants_write_ = false;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Pending> pending_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvmbus::vmm
