// SPDX-License-Identifier: Apache-2.0
/// \file
/// QosQueue: a DiskQueue before another one: holds requests back as the disk's limits say, and
/// measures them all.
#pragma once

#include <memory>

#include "virtdev/disk/qos/disk_qos.h"
#include "virtdev/disk/qos/rate_bucket.h"

namespace kvmbus::virtdev {

/// Home: the queue's loop. Requests that must wait do so in the order in which they came; the first
/// of them has its place in the disk's RateBucket, so that the queues of a disk that wait get their
/// turns in turn, however many requests each of them has. A flush does not wait: it covers what has
/// completed, which no waiting request has.
class QosQueue final : public DiskQueue, private DiskCompletion {
 public:
  QosQueue(DiskQos& qos, std::unique_ptr<DiskQueue> host, vmm::Loop& loop);
  ~QosQueue() override;

  void Submit(DiskRequest& request) override;
  void Kick() override;
  /// Lets go what waits, at the expense of those that come later: a machine that stops, or a guest
  /// that closes its channel, does not wait for a limit, and does not get around it.
  void Drain() override;

 private:
  friend class DiskQos;
  enum class Phase { kNone, kSubmitting, kCompleting };
  struct Statistics {
    std::array<vmm::Histogram, DiskStatistics::kKinds> latency;
    vmm::OwnedCounter bytes_read, bytes_written, normalized_ios, errors;
  };

  void Adopt(std::shared_ptr<RateBucket> bucket, bool monitored);
  void PostAdopt(std::shared_ptr<RateBucket> bucket, bool monitored);
  void AddTo(DiskStatistics* statistics) const;
  uint64_t normalized_ios() const { return statistics_.normalized_ios.value(); }

  uint64_t Now(Phase phase);
  uint64_t ReadClock(Phase phase);
  uint64_t Reserve(const DiskRequest& request, uint64_t now_ns);
  void Park(DiskRequest& request);
  void ArmTimer();
  void Unpark(uint64_t now_ns);
  void ReleaseDue();
  void ReleaseAll();
  void Pass(DiskRequest& request, uint64_t now_ns);
  void OnDiskComplete(DiskRequest& request) override;
  void Count(const DiskRequest& request, uint64_t now_ns);
  void UpdateMonitor(uint64_t now_ns);

  DiskQos& qos_;
  const std::unique_ptr<DiskQueue> host_;
  vmm::Loop& loop_;
  std::shared_ptr<RateBucket> bucket_;  ///< null: no maximum
  // The requests that wait, and when the first of them may go.
  DiskRequest* first_ = nullptr;
  DiskRequest* last_ = nullptr;
  uint64_t first_may_go_ns_ = 0;
  vmm::Loop::TimerId timer_ = 0;
  bool draining_ = false;
  // The clock is read once for what is submitted, or completes, in one go.
  Phase phase_ = Phase::kNone;
  uint64_t phase_turn_ = 0;
  uint64_t now_ns_ = 0;
  // The minimum.
  bool monitored_ = false;
  bool told_busy_ = false;
  uint64_t under_way_ = 0;  ///< in the host, flushes apart
  uint64_t window_end_ns_ = 0;
  Statistics statistics_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvmbus::virtdev
