// SPDX-License-Identifier: Apache-2.0
#include "virtdev/synthetic/ic/shutdown.h"

namespace kvmbus::virtdev {

using vmm::Code;
using vmm::Error;

namespace {
constexpr vmm::Guid kInterface = vmm::MakeGuid("0e0b6031-5213-4934-818b-38d90ced39db");
}  // namespace

ShutdownDevice::ShutdownDevice(std::string name, const vmm::Guid& instance_id, vmm::Loop& loop)
    : IcDevice(std::move(name), ic::kTypeShutdown, kInterface, instance_id,
               {{1, 0}, {3, 0}, {3, 1}, {3, 2}}, loop) {}

ShutdownDevice::~ShutdownDevice() { loop().CancelTimer(timer_); }

void ShutdownDevice::RequestShutdown(bool restart, bool force, Done done) {
  if (!version())
    return done(Error(Code::kFailedPrecondition,
                      "the guest's shutdown service is not ready: wait until it has booted and "
                      "loaded hv_utils, or turn it off"));
  if (done_) return done(Error(Code::kUnavailable, "a shutdown request is under way already"));
  ic::ShutdownBody body = {};
  body.reason = ic::kShutdownReasonPlanned;
  body.flags = (force ? ic::kShutdownForce : 0) | (restart ? ic::kShutdownRestart : 0);
  if (!SendRequest({reinterpret_cast<const uint8_t*>(&body), sizeof(body)}))
    return done(Error(Code::kUnavailable,
                      "the guest does not take messages now; try again, or turn it off"));
  done_ = std::move(done);
  timer_ = loop().AddTimer(kAnswerTimeoutNs, [this] {
    AbandonTransaction();
    Finish(Error(Code::kDeadlineExceeded,
                 "the guest did not answer the shutdown request in 30 s; turn it off"));
  });
}

void ShutdownDevice::OnResponse(uint32_t status, std::span<const uint8_t>) {
  if (status == 0) return Finish({});
  Finish(vmm::MakeError(Code::kFailedPrecondition, "the guest refused to shut down (status {:#x})",
                        status));
}

void ShutdownDevice::OnSessionEnd() {
  Finish(Error(Code::kUnavailable, "the guest closed its shutdown service"));
}

void ShutdownDevice::Finish(const vmm::Result<void>& result) {
  loop().CancelTimer(timer_);
  timer_ = 0;
  if (!done_) return;
  const Done done = std::exchange(done_, nullptr);
  done(result);
}

}  // namespace kvmbus::virtdev
