// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/capture_follower.h"

namespace kvmbus::vmm {
namespace {

constexpr uint64_t kIntervalNs = 300'000'000;
constexpr uint64_t kCallTimeoutNs = 30'000'000'000;

}  // namespace

CaptureFollower::~CaptureFollower() {
  *alive_ = false;
  for (const auto& [job, timer] : timers_) loop_.CancelTimer(timer);
}

void CaptureFollower::Follow(const std::string& job, const std::string& vm) {
  jobs_.SetCancel(job, [this, vm] {
    worker::Request cancel;
    cancel.mutable_cancel_capture();
    inventory_.Call(vm, std::move(cancel), kCallTimeoutNs, [](const auto&) {});
  });
  Poll(job, vm);
}

void CaptureFollower::Stop(const std::string& job) {
  if (const auto timer = timers_.extract(job)) loop_.CancelTimer(timer.mapped());
}

void CaptureFollower::Poll(const std::string& job, const std::string& vm) {
  timers_[job] = loop_.AddTimer(kIntervalNs, [this, job, vm] {
    worker::Request request;
    request.mutable_status();
    inventory_.Call(vm, std::move(request), kCallTimeoutNs,
                    [this, alive = alive_, job, vm](const Result<worker::Reply>& reply) {
                      if (!*alive || timers_.count(job) == 0) return;
                      if (reply.ok())
                        jobs_.SetProgress(job, reply->status().capture_done(),
                                          reply->status().capture_total());
                      Poll(job, vm);
                    });
  });
}

void CaptureFollower::AwaitEnd(const std::string& job, const std::string& vm,
                               std::function<void()> over) {
  const auto view = inventory_.Get(vm);
  if (!view.ok() || view->status.state() == worker::OFF || view->status.state() == worker::SAVED)
    return over();
  worker::Request request;
  request.mutable_status();
  inventory_.Call(
      vm, std::move(request), kCallTimeoutNs,
      [this, alive = alive_, job, vm, over](const Result<worker::Reply>& reply) {
        if (!*alive) return;
        if (!reply.ok() || reply->status().capture_total() == 0) return over();
        jobs_.SetProgress(job, reply->status().capture_done(), reply->status().capture_total());
        timers_[job] =
            loop_.AddTimer(kIntervalNs, [this, job, vm, over] { AwaitEnd(job, vm, over); });
      });
}

}  // namespace kvmbus::vmm
