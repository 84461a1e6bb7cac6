// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the tests of Storage QoS share: queues of a fake disk behind its limits on loops that the
/// test turns by hand, and a guest that keeps so many requests under way on each.
#pragma once

#include <sys/uio.h>

#include <memory>
#include <utility>
#include <vector>

#include "tests/fakes/limited_disk.h"
#include "tests/fakes/manual_clock.h"
#include "virtdev/disk/qos/disk_qos.h"

namespace kvmbus::virtdev {

inline constexpr uint64_t kMs = 1'000'000;

/// One queue and its guest. Requests are read from the start of the disk.
class QosTestLoad final : private DiskCompletion {
 public:
  QosTestLoad(DiskIo& disk, vmm::Loop& loop, uint64_t request_bytes)
      : loop_(loop),
        clock_(loop.clock()),
        queue_(disk.OpenQueue(loop).value()),
        buffer_(request_bytes),
        piece_{buffer_.data(), buffer_.size()} {}
  ~QosTestLoad() override {
    sustain_ = false;
    queue_->Drain();
  }

  /// Submits this many; each that completes is followed by another while it is sustained.
  void Start(unsigned depth, bool sustain) {
    sustain_ = sustain;
    for (unsigned i = 0; i < depth; ++i) {
      requests_.push_back(std::make_unique<DiskRequest>());
      Submit(*requests_.back());
    }
    queue_->Kick();
  }
  void Stop() { sustain_ = false; }

  DiskQueue& queue() { return *queue_; }
  vmm::Loop& loop() { return loop_; }
  uint64_t done() const { return done_times_.size(); }
  /// When each request was done.
  const std::vector<uint64_t>& done_times() const { return done_times_; }
  unsigned under_way() const { return under_way_; }

 private:
  void Submit(DiskRequest& request) {
    request.op = DiskRequest::Op::kRead;
    request.length = buffer_.size();
    request.iov = {&piece_, 1};
    request.completion = this;
    ++under_way_;
    queue_->Submit(request);
  }
  void OnDiskComplete(DiskRequest& request) override {
    --under_way_;
    KVMBUS_ASSERT(request.error == 0 && request.completion == this);
    done_times_.push_back(clock_.MonotonicNs());
    if (!sustain_) return;
    Submit(request);
    queue_->Kick();
  }

  vmm::Loop& loop_;
  const vmm::Clock& clock_;
  std::unique_ptr<DiskQueue> queue_;
  std::vector<uint8_t> buffer_;
  iovec piece_;
  std::vector<std::unique_ptr<DiskRequest>> requests_;
  std::vector<uint64_t> done_times_;
  unsigned under_way_ = 0;
  bool sustain_ = false;
};

/// A disk with a clock that stands still until told.
class QosTestDisk {
 public:
  explicit QosTestDisk(tests::FakeDisk::Timing timing = tests::FakeDisk::Timing::kPosted)
      : disk(tests::FakeDisk::DefaultInfo(2u << 20), clock), qos(*disk.qos()) {
    disk.set_timing(timing);
  }
  QosTestLoad& Add(uint64_t request_bytes) {
    loops_.push_back(vmm::Loop::Create(clock).value());
    loads.push_back(std::make_unique<QosTestLoad>(disk, *loops_.back(), request_bytes));
    return *loads.back();
  }
  /// What is ready now, to the end.
  void Settle() {
    for (int i = 0; i < 4; ++i) {
      for (const auto& loop : loops_) loop->RunOnce(0);
    }
  }
  void Run(uint64_t ns, uint64_t step_ns = kMs) {
    for (uint64_t passed = 0; passed < ns; passed += step_ns) {
      clock.Advance(step_ns);
      Settle();
    }
  }
  uint64_t Done() const {
    uint64_t sum = 0;
    for (const auto& load : loads) sum += load->done();
    return sum;
  }

  tests::ManualClock clock;
  tests::LimitedDisk disk;
  DiskQos& qos;

 private:
  std::vector<std::unique_ptr<vmm::Loop>> loops_;

 public:
  std::vector<std::unique_ptr<QosTestLoad>> loads;  ///< before the loops are gone
};

}  // namespace kvmbus::virtdev
