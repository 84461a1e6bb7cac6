// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/capture_follower.h"

#include <utility>

namespace kvmbus::vmm {
namespace {

constexpr uint64_t kIntervalNs = 300'000'000;
/// What is cancelled may begin yet; by then no more than this of it is done.
constexpr uint64_t kCancelIntervalNs = 20'000'000;
constexpr uint64_t kCallTimeoutNs = 30'000'000'000;

/// Workers of an earlier version tell of memory alone.
bool IsCapturing(const worker::Status& status) {
  return status.capturing() || status.capture_total() != 0;
}

}  // namespace

CaptureFollower::~CaptureFollower() {
  for (const auto& [job, watch] : watches_) loop_.CancelTimer(watch->timer);
}

CaptureFollower::Watch& CaptureFollower::Begin(const std::string& job, const std::string& vm) {
  Stop(job);
  const auto watch = watches_[job] = std::make_shared<Watch>();
  watch->job = job;
  watch->vm = vm;
  jobs_.SetCancel(job, [this, weak = std::weak_ptr(watch)] {
    const auto cancelled = weak.lock();
    if (!cancelled) return;
    cancelled->cancelled = true;
    loop_.CancelTimer(cancelled->timer);
    Ask(*cancelled);
  });
  return *watch;
}

void CaptureFollower::Follow(const std::string& job, const std::string& vm) {
  AskLater(Begin(job, vm));
}

void CaptureFollower::AwaitEnd(const std::string& job, const std::string& vm,
                               std::function<void()> over) {
  Watch& watch = Begin(job, vm);
  watch.over = std::move(over);
  Ask(watch);
}

void CaptureFollower::EndCapture(const std::string& job, const std::string& vm,
                                 std::function<void()> over) {
  Watch& watch = Begin(job, vm);
  watch.over = std::move(over);
  watch.cancelled = true;
  Ask(watch);
}

void CaptureFollower::Stop(const std::string& job) {
  if (const auto watch = watches_.extract(job)) loop_.CancelTimer(watch.mapped()->timer);
}

/// The last call for this watch, in a function that uses it no more.
void CaptureFollower::End(Watch& watch) {
  const auto over = std::move(watch.over);
  Stop(watch.job);
  over();
}

bool CaptureFollower::HasNoWorker(const Watch& watch) const {
  const auto view = inventory_.Get(watch.vm);
  if (!view.ok()) return true;
  const worker::State state = view->status.state();
  return (state == worker::OFF || state == worker::SAVED) && view->status.pid() == 0;
}

void CaptureFollower::SendCancel(const Watch& watch) {
  worker::Request cancel;
  cancel.mutable_cancel_capture();
  inventory_.Call(watch.vm, std::move(cancel), kCallTimeoutNs, [](const auto&) {});
}

void CaptureFollower::Ask(Watch& watch) {
  if (watch.over && HasNoWorker(watch)) return End(watch);
  if (watch.cancelled) SendCancel(watch);
  worker::Request request;
  request.mutable_status();
  inventory_.Call(watch.vm, std::move(request), kCallTimeoutNs,
                  [this, weak = std::weak_ptr(watches_.at(watch.job))](const auto& reply) {
                    if (const auto asked = weak.lock()) OnStatus(*asked, reply);
                  });
}

void CaptureFollower::OnStatus(Watch& watch, const Result<worker::Reply>& reply) {
  if (reply.ok()) {
    const worker::Status& status = reply->status();
    jobs_.SetProgress(watch.job, status.capture_done(), status.capture_total());
    // A machine that is Saved keeps its worker until vmmd has noted it.
    if (watch.over && !IsCapturing(status) && status.state() != worker::SAVED) return End(watch);
  }
  AskLater(watch);
}

void CaptureFollower::AskLater(Watch& watch) {
  loop_.CancelTimer(watch.timer);
  watch.timer = loop_.AddTimer(watch.cancelled ? kCancelIntervalNs : kIntervalNs,
                               [this, &watch] { Ask(watch); });
}

}  // namespace kvmbus::vmm
