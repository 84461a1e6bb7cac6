// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/qos/qos_queue.h"

#include <algorithm>

namespace kvmbus::virtdev {

using Op = DiskRequest::Op;

namespace {

bool HasData(const DiskRequest& request) {
  return request.op == Op::kRead || request.op == Op::kWrite;
}

uint64_t BytesOf(const DiskRequest& request) { return HasData(request) ? request.length : 0; }

uint64_t UnitsOf(const DiskRequest& request) {
  constexpr uint64_t kUnitBytes = 8192;
  if (request.op == Op::kFlush) return 0;
  const uint64_t bytes = BytesOf(request);
  return bytes <= kUnitBytes ? 1 : (bytes - 1) / kUnitBytes + 1;
}

DiskStatistics::Kind KindOf(Op op) {
  switch (op) {
    case Op::kRead:
      return DiskStatistics::kRead;
    case Op::kWrite:
    case Op::kWriteZeroes:
      return DiskStatistics::kWrite;
    case Op::kFlush:
      return DiskStatistics::kFlush;
    case Op::kUnmap:
      return DiskStatistics::kUnmap;
  }
  return DiskStatistics::kRead;
}

}  // namespace

QosQueue::QosQueue(DiskQos& qos, std::unique_ptr<DiskQueue> host, vmm::Loop& loop)
    : qos_(qos), host_(std::move(host)), loop_(loop) {}

QosQueue::~QosQueue() {
  KVMBUS_ASSERT(first_ == nullptr && under_way_ == 0);
  loop_.CancelTimer(timer_);
  qos_.Leave(*this);
}

// --- the way of a request

void QosQueue::Submit(DiskRequest& request) {
  if (request.unlimited) return host_->Submit(request);
  request.qos = {request.completion, nullptr, Now(Phase::kSubmitting)};
  request.completion = this;
  if (bucket_ == nullptr || request.op == Op::kFlush) return Pass(request, request.qos.since_ns);
  if (first_ != nullptr && !draining_) return Park(request);
  const uint64_t may_go_ns = Reserve(request, request.qos.since_ns);
  if (may_go_ns <= request.qos.since_ns || draining_) return Pass(request, request.qos.since_ns);
  first_may_go_ns_ = may_go_ns;
  Park(request);
}

void QosQueue::Kick() {
  phase_ = Phase::kNone;
  host_->Kick();
  phase_ = Phase::kNone;
}

/// `now_ns`: since when it is under way in the host.
void QosQueue::Pass(DiskRequest& request, uint64_t now_ns) {
  request.qos.since_ns = now_ns;
  if (request.op != Op::kFlush && ++under_way_ == 1 && monitored_) UpdateMonitor(now_ns);
  host_->Submit(request);
}

void QosQueue::OnDiskComplete(DiskRequest& request) {
  const uint64_t now_ns = Now(Phase::kCompleting);
  if (monitored_ && now_ns >= window_end_ns_) window_end_ns_ = qos_.Roll(now_ns);
  Count(request, now_ns);
  if (request.op != Op::kFlush && --under_way_ == 0 && told_busy_) UpdateMonitor(now_ns);
  request.completion = request.qos.completion;
  request.completion->OnDiskComplete(request);
}

void QosQueue::Count(const DiskRequest& request, uint64_t now_ns) {
  statistics_.latency[KindOf(request.op)].Add(now_ns - request.qos.since_ns);
  if (request.error != 0 || request.command_failed) return statistics_.errors.Add();
  if (request.op == Op::kRead) statistics_.bytes_read.Add(request.length);
  if (request.op == Op::kWrite) statistics_.bytes_written.Add(request.length);
  if (request.op != Op::kFlush) statistics_.normalized_ios.Add(UnitsOf(request));
}

/// The time is shared by what is submitted until the next Kick, for it starts then, and by what
/// completes in one Kick or one turn of the loop. Between Drain's completions time passes.
uint64_t QosQueue::Now(Phase phase) {
  if (phase_ == phase && phase_turn_ == loop_.turn() && !draining_) return now_ns_;
  return ReadClock(phase);
}

uint64_t QosQueue::ReadClock(Phase phase) {
  phase_ = phase;
  phase_turn_ = loop_.turn();
  return now_ns_ = qos_.clock_.MonotonicNs();
}

// --- requests that wait

uint64_t QosQueue::Reserve(const DiskRequest& request, uint64_t now_ns) {
  return bucket_->Reserve(now_ns, UnitsOf(request), BytesOf(request));
}

void QosQueue::Park(DiskRequest& request) {
  (first_ == nullptr ? first_ : last_->qos.next) = &request;
  last_ = &request;
  ArmTimer();
}

/// For the first of those that wait. A timer that was set for one before it comes early, and is set
/// anew.
void QosQueue::ArmTimer() {
  if (first_ == nullptr || timer_ != 0) return;
  const uint64_t now_ns = qos_.clock_.MonotonicNs();
  timer_ = loop_.AddTimer(first_may_go_ns_ - std::min(first_may_go_ns_, now_ns), [this] {
    timer_ = 0;
    ReleaseDue();
  });
}

/// The first one goes; the second takes its place in the bucket before that, for the completion of
/// the first may submit another.
void QosQueue::Unpark(uint64_t now_ns) {
  DiskRequest& request = *first_;
  first_ = request.qos.next;
  if (first_ != nullptr && bucket_ != nullptr) first_may_go_ns_ = Reserve(*first_, now_ns);
  statistics_.latency[DiskStatistics::kHeld].Add(now_ns - request.qos.since_ns);
  Pass(request, now_ns);
}

void QosQueue::ReleaseDue() {
  const uint64_t now_ns = ReadClock(Phase::kSubmitting);
  while (first_ != nullptr && first_may_go_ns_ <= now_ns) Unpark(now_ns);
  Kick();
  ArmTimer();
}

void QosQueue::ReleaseAll() {
  while (first_ != nullptr) Unpark(ReadClock(Phase::kSubmitting));
  loop_.CancelTimer(timer_);
  timer_ = 0;
}

void QosQueue::Drain() {
  draining_ = true;
  ReleaseAll();
  host_->Drain();
  draining_ = false;
  phase_ = Phase::kNone;
}

// --- what the disk's other queues share

/// In the loop, or before the first request.
void QosQueue::Adopt(std::shared_ptr<RateBucket> bucket, bool monitored) {
  bucket_ = std::move(bucket);
  monitored_ = monitored;
  UpdateMonitor(qos_.clock_.MonotonicNs());
  if (first_ == nullptr) return;
  loop_.CancelTimer(timer_);
  timer_ = 0;
  if (bucket_ == nullptr) {
    ReleaseAll();
    return Kick();
  }
  first_may_go_ns_ = Reserve(*first_, qos_.clock_.MonotonicNs());
  ReleaseDue();
}

void QosQueue::PostAdopt(std::shared_ptr<RateBucket> bucket, bool monitored) {
  loop_.Post([this, alive = std::weak_ptr<bool>(alive_), bucket = std::move(bucket), monitored] {
    if (!alive.expired()) Adopt(bucket, monitored);
  });
}

void QosQueue::UpdateMonitor(uint64_t now_ns) {
  const bool busy = monitored_ && under_way_ != 0;
  if (busy == told_busy_) return;
  told_busy_ = busy;
  window_end_ns_ = qos_.SetBusy(busy, now_ns);
}

void QosQueue::AddTo(DiskStatistics* statistics) const {
  for (size_t kind = 0; kind < DiskStatistics::kKinds; ++kind)
    statistics->latency[kind].Add(statistics_.latency[kind].Read());
  statistics->bytes_read += statistics_.bytes_read.value();
  statistics->bytes_written += statistics_.bytes_written.value();
  statistics->normalized_ios += statistics_.normalized_ios.value();
  statistics->errors += statistics_.errors.value();
}

}  // namespace kvmbus::virtdev
