// SPDX-License-Identifier: Apache-2.0
/// \file
/// Results as replies of the worker.
#pragma once

#include "vmm/result/result.h"
#include "worker/worker.pb.h"

namespace kvmbus::cmd {

inline worker::Reply Failed(const vmm::Error& error) {
  worker::Reply reply;
  reply.mutable_failure()->set_code(static_cast<uint32_t>(error.code()));
  reply.mutable_failure()->set_message(error.ToString());
  return reply;
}

inline worker::Reply FromResult(const vmm::Result<void>& result) {
  return result.ok() ? worker::Reply() : Failed(result.error());
}

}  // namespace kvmbus::cmd
