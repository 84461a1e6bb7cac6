// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/qos/disk_qos.h"

#include <algorithm>

#include "virtdev/disk/qos/qos_queue.h"
#include "virtdev/disk/qos/rate_bucket.h"

namespace kvmbus::virtdev {

DiskQos::DiskQos(const vmm::Clock& clock) : clock_(clock) {}

DiskQos::~DiskQos() { KVMBUS_ASSERT(queues_.empty()); }

std::unique_ptr<DiskQueue> DiskQos::Wrap(std::unique_ptr<DiskQueue> queue, vmm::Loop& loop) {
  auto wrapped = std::make_unique<QosQueue>(*this, std::move(queue), loop);
  std::lock_guard lock(mutex_);
  wrapped->Adopt(bucket_, limits_.min_iops != 0);
  queues_.push_back(wrapped.get());
  return wrapped;
}

void DiskQos::SetLimits(const QosLimits& limits) {
  const uint64_t now_ns = clock_.MonotonicNs();
  std::lock_guard lock(mutex_);
  limits_ = limits;
  bucket_ = limits.max_iops == 0 && limits.max_bytes_per_second == 0
                ? nullptr
                : std::make_shared<RateBucket>(limits, now_ns);
  monitor_.SetMinimum(limits.min_iops, now_ns, NormalizedIos());
  for (QosQueue* queue : queues_) queue->PostAdopt(bucket_, limits.min_iops != 0);
}

QosLimits DiskQos::limits() const {
  std::lock_guard lock(mutex_);
  return limits_;
}

DiskStatistics DiskQos::Statistics() const {
  const uint64_t now_ns = clock_.MonotonicNs();
  std::lock_guard lock(mutex_);
  monitor_.Roll(now_ns, NormalizedIos());
  DiskStatistics statistics = gone_;
  for (const QosQueue* queue : queues_) queue->AddTo(&statistics);
  statistics.limits = limits_;
  statistics.insufficient_seconds = monitor_.insufficient_seconds();
  if (limits_.min_iops != 0)
    statistics.minimum =
        monitor_.sufficient() ? MinimumStatus::kOk : MinimumStatus::kInsufficientThroughput;
  return statistics;
}

void DiskQos::VisitCounters(const vmm::CounterVisitor& visit) const {
  const DiskStatistics statistics = Statistics();
  vmm::Counter held, insufficient;
  held.Add(statistics.latency[DiskStatistics::kHeld].count);
  insufficient.Add(statistics.insufficient_seconds);
  visit("disk_held", held);
  visit("disk_insufficient_seconds", insufficient);
}

void DiskQos::Leave(QosQueue& queue) {
  std::lock_guard lock(mutex_);
  std::erase(queues_, &queue);
  queue.AddTo(&gone_);
}

uint64_t DiskQos::SetBusy(bool busy, uint64_t now_ns) {
  std::lock_guard lock(mutex_);
  if (busy)
    monitor_.Busy(now_ns, NormalizedIos());
  else
    monitor_.Idle(now_ns, NormalizedIos());
  return monitor_.window_end_ns();
}

uint64_t DiskQos::Roll(uint64_t now_ns) {
  std::lock_guard lock(mutex_);
  monitor_.Roll(now_ns, NormalizedIos());
  return monitor_.window_end_ns();
}

/// Under the lock.
uint64_t DiskQos::NormalizedIos() const {
  uint64_t sum = gone_.normalized_ios;
  for (const QosQueue* queue : queues_) sum += queue->normalized_ios();
  return sum;
}

}  // namespace kvmbus::virtdev
