// SPDX-License-Identifier: Apache-2.0
// The order of requests, and queues on threads of their own.
#include "virtdev/disk/qos/qos_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <random>
#include <set>
#include <thread>

#include "virtdev/disk/qos/qos_test_load.h"

namespace kvmbus::virtdev {
namespace {

using Op = DiskRequest::Op;

constexpr uint64_t kMiB = 1u << 20;

/// Remembers what it was given, and completes some of it when told, in any order.
class RecordingQueue final : public DiskQueue {
 public:
  explicit RecordingQueue(std::mt19937& random) : random_(random) {}
  void Submit(DiskRequest& request) override {
    submitted.push_back(&request);
    under_way.push_back(&request);
  }
  void Kick() override {}
  void Drain() override {
    while (!under_way.empty()) CompleteOne();
  }
  void CompleteOne() {
    std::swap(under_way[random_() % under_way.size()], under_way.back());
    DiskRequest& request = *under_way.back();
    under_way.pop_back();
    request.completion->OnDiskComplete(request);
  }

  std::vector<DiskRequest*> submitted, under_way;

 private:
  std::mt19937& random_;
};

class Recorder final : public DiskCompletion {
 public:
  void OnDiskComplete(DiskRequest& request) override {
    EXPECT_EQ(request.completion, this) << "it is the submitter's again, as it was";
    EXPECT_TRUE(done.insert(&request).second) << "told twice";
  }
  std::set<const DiskRequest*> done;
};

/// What a flush must cover, and that the host got it before the flush did.
struct FlushRule {
  const DiskRequest* flush;
  std::set<const DiskRequest*> covered;
};

// Random requests of all kinds, limits that come and go, drains: each request is told once, those
// that limits hold reach the host in their order, and each flush finds there what it covers.
TEST(QosQueueTest, NoRequestIsLostAndOrderIsKept) {
  std::mt19937 random(7);
  for (int run = 0; run < 200; ++run) {
    tests::ManualClock clock;
    const auto loop = vmm::Loop::Create(clock).value();
    DiskQos qos(clock);
    auto recording = std::make_unique<RecordingQueue>(random);
    RecordingQueue& host = *recording;
    const auto queue = qos.Wrap(std::move(recording), *loop);
    Recorder recorder;
    std::deque<DiskRequest> requests;
    std::vector<const DiskRequest*> wanted_order;
    std::vector<FlushRule> rules;
    for (int step = 0; step < 300; ++step) {
      switch (random() % 8) {
        case 0:
          qos.SetLimits(random() % 3 == 0 ? QosLimits{}
                                          : QosLimits{random() % 2 * 100, 10 + random() % 5000,
                                                      random() % 2 * (1 + random() % 64) * kMiB});
          break;
        case 1:
          clock.Advance(random() % 20 * kMs);
          break;
        case 2:
          loop->RunOnce(0);
          break;
        case 3:
          if (!host.under_way.empty()) host.CompleteOne();
          break;
        case 4:
          if (random() % 20 == 0) queue->Drain();
          break;
        default:
          DiskRequest& request = requests.emplace_back();
          request.op = static_cast<Op>(random() % 5);
          request.length = request.op == Op::kFlush ? 0 : 512 * (1 + random() % 256);
          request.completion = &recorder;
          if (request.op == Op::kFlush)
            rules.push_back({&request, recorder.done});
          else
            wanted_order.push_back(&request);
          queue->Submit(request);
          if (random() % 3 == 0) queue->Kick();
      }
    }
    queue->Drain();
    EXPECT_EQ(recorder.done.size(), requests.size());
    std::vector<const DiskRequest*> order;
    std::set<const DiskRequest*> before;
    size_t flushes = 0;
    for (const DiskRequest* request : host.submitted) {
      if (request->op != Op::kFlush) {
        order.push_back(request);
      } else {
        ASSERT_EQ(request, rules[flushes].flush);
        for (const DiskRequest* covered : rules[flushes++].covered)
          EXPECT_EQ(before.count(covered), 1u);
      }
      before.insert(request);
    }
    EXPECT_EQ(order, wanted_order);
    EXPECT_EQ(flushes, rules.size());
  }
}

TEST(QosQueueTest, AFlushPassesThoseThatWait) {
  QosTestDisk test;
  test.qos.SetLimits({0, 8, 0});
  QosTestLoad& load = test.Add(65536);
  load.Start(8, false);
  Recorder recorder;
  DiskRequest flush;
  flush.op = Op::kFlush;
  flush.completion = &recorder;
  load.queue().Submit(flush);
  load.queue().Kick();
  test.Settle();
  EXPECT_EQ(recorder.done.size(), 1u);
  EXPECT_EQ(load.done(), 1u);
}

TEST(QosQueueTest, RequestsWithoutDataAreOneUnitAndErrorsAreCounted) {
  QosTestDisk test;
  test.qos.SetLimits({0, 1000, 64u << 10});
  QosTestLoad& load = test.Add(512);
  Recorder recorder;
  std::deque<DiskRequest> requests(20);
  for (DiskRequest& request : requests) {
    request.op = &request == &requests.front() ? Op::kWriteZeroes : Op::kUnmap;
    request.length = 1u << 20;
    request.completion = &recorder;
    load.queue().Submit(request);
  }
  load.queue().Kick();
  test.disk.InjectError(Op::kUnmap, EIO, 2);
  test.Run(25 * kMs);
  EXPECT_EQ(recorder.done.size(), 20u);
  const DiskStatistics statistics = test.qos.Statistics();
  EXPECT_EQ(statistics.normalized_ios, 18u);
  EXPECT_EQ(statistics.errors, 2u);
  EXPECT_EQ(statistics.bytes_written, 0u);
  EXPECT_EQ(statistics.latency[DiskStatistics::kWrite].count, 1u);
  EXPECT_EQ(statistics.latency[DiskStatistics::kUnmap].count, 19u);
}

// On the host's clock: queues on four threads, limits that change meanwhile, statistics read
// meanwhile; nothing is lost and everything is counted.
TEST(QosQueueTest, ThreadsShareTheLimits) {
  tests::LimitedDisk disk(tests::FakeDisk::DefaultInfo(1u << 20));
  DiskQos& qos = *disk.qos();
  disk.set_timing(tests::FakeDisk::Timing::kPosted);
  std::vector<std::unique_ptr<vmm::LoopThread>> threads;
  std::vector<std::unique_ptr<QosTestLoad>> loads(4);
  for (size_t i = 0; i < loads.size(); ++i) {
    threads.push_back(vmm::LoopThread::Start(fmt::format("io/{}", i)).value());
    vmm::Loop& loop = threads[i]->loop();
    loop.PostAndWait([&] {
      loads[i] = std::make_unique<QosTestLoad>(disk, loop, 4096 << i);
      loads[i]->Start(8u << i, true);
    });
  }
  std::mt19937 random(3);
  for (int i = 0; i < 60; ++i) {
    qos.SetLimits({random() % 2 * 5000, random() % 3 * (5000 + random() % 10'000),
                   random() % 3 * (10u << 20)});
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 20));
    (void)qos.Statistics();
  }
  qos.SetLimits({0, 100, 0});  // and so most of them wait when the queues go
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  uint64_t done = 0, bytes = 0;
  for (size_t i = 0; i < loads.size(); ++i) {
    threads[i]->loop().PostAndWait([&] {
      loads[i]->Stop();
      loads[i]->queue().Drain();
      EXPECT_EQ(loads[i]->under_way(), 0u);
      done += loads[i]->done();
      bytes += loads[i]->done() * (4096u << i);
      loads[i].reset();
    });
  }
  const DiskStatistics statistics = qos.Statistics();
  EXPECT_EQ(statistics.latency[DiskStatistics::kRead].count, done);
  EXPECT_EQ(statistics.bytes_read, bytes);
  EXPECT_GT(statistics.latency[DiskStatistics::kHeld].count, 0u);
}

}  // namespace
}  // namespace kvmbus::virtdev
