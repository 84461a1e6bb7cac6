// SPDX-License-Identifier: Apache-2.0
/// \file
/// OwnerCall: one thing that is asked of a shared disk's owner, on a connection of its own.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "vmm/event/loop.h"
#include "vmm/shared_disk/protocol.h"

namespace kvmbus::vmm {

/// What an owner's answer says.
Result<void> ResultOf(const shared_disk::HelloReply& reply);

/// Home: the loop. Gone before the answer, it is not answered.
class OwnerCall {
 public:
  /// Once; the object may be gone after it. kUnavailable: the owner ended; kDeadlineExceeded.
  using Done = std::function<void(const Result<void>&)>;

  static Result<std::unique_ptr<OwnerCall>> Start(Loop& loop, const std::string& socket_path,
                                                  const shared_disk::Hello& hello,
                                                  uint64_t timeout_ns, Done done);
  ~OwnerCall();

 private:
  OwnerCall(Loop& loop, Fd socket, Done done)
      : loop_(loop), socket_(std::move(socket)), done_(std::move(done)) {}
  void OnReady();
  void End(const Result<void>& result);

  Loop& loop_;
  const Fd socket_;
  Done done_;
  std::vector<uint8_t> in_;
  Loop::TimerId timer_ = 0;
};

}  // namespace kvmbus::vmm
