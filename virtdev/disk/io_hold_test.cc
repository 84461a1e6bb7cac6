// SPDX-License-Identifier: Apache-2.0
// The hold alone: requests of several threads, and one who wants the disk for itself.
#include "virtdev/disk/io_hold.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

namespace kvmbus::virtdev {
namespace {

/// A thread that enters and leaves as fast as it can, and waits when it is turned away.
class Traffic final : private IoHold::Waiter {
 public:
  Traffic(IoHold& hold, std::atomic<int>& inside) : hold_(hold), inside_(inside) {}
  ~Traffic() override { hold_.Forget(*this); }
  void Run(const std::atomic<bool>& stop) {
    while (!stop.load()) {
      auto token = hold_.Enter(*this);
      if (!token && ++turned_away_ % 3 == 0) {
        token = hold_.EnterNow();  // as a queue that is drained
      } else if (!token) {
        std::unique_lock lock(mutex_);
        released_.wait(lock, [this] { return std::exchange(may_go_, false); });
        continue;
      }
      inside_.fetch_add(1);
      inside_.fetch_sub(1);
      hold_.Leave(*token);
    }
  }
  uint64_t turned_away() const { return turned_away_; }

 private:
  void OnReleased() override {
    std::lock_guard lock(mutex_);
    may_go_ = true;
    released_.notify_all();
  }

  IoHold& hold_;
  std::atomic<int>& inside_;
  uint64_t turned_away_ = 0;
  std::mutex mutex_;
  std::condition_variable released_;
  bool may_go_ = false;
};

// Who enters again before it leaves, as a request does that leaves work behind, is inside all the
// time.
TEST(IoGateTest, WhoGoesFromPhaseToPhaseIsSeen) {
  IoGate gate;
  std::atomic<bool> stop{false};
  bool empty = false;
  uint32_t token = gate.Enter();
  std::thread walker([&] {
    while (!stop.load()) {
      gate.Advance();
      const uint32_t next = gate.Enter();
      gate.Leave(token);
      token = next;
    }
  });
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  while (!empty && std::chrono::steady_clock::now() < end) {
    for (int i = 0; i < 10000 && !empty; ++i) empty = gate.IsEmpty();
  }
  stop = true;
  walker.join();
  EXPECT_FALSE(empty);
  gate.Leave(token);
  EXPECT_TRUE(gate.IsEmpty());
}

TEST(IoHoldTest, NobodyIsInsideWhileATaskRuns) {
  IoGate gate;
  IoHold hold(gate);
  std::atomic<int> inside{0};
  std::atomic<bool> stop{false};
  std::vector<std::unique_ptr<Traffic>> traffic;
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    traffic.push_back(std::make_unique<Traffic>(hold, inside));
    threads.emplace_back([&stop, one = traffic.back().get()] { one->Run(stop); });
  }
  int plain = 0;  // for the thread sanitizer: tasks exclude each other
  const auto hold_often = [&] {
    for (int i = 0; i < 100; ++i) {
      const auto held = hold.Run([&]() -> vmm::Result<void> {
        ++plain;
        for (int look = 0; look < 5; ++look) {
          if (inside.load() != 0) return vmm::Error(vmm::Code::kInternal, "somebody is inside");
          std::this_thread::yield();
        }
        return {};
      });
      ASSERT_TRUE(held.ok()) << held.error().ToString();
    }
  };
  std::thread other(hold_often);
  hold_often();
  other.join();
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(plain, 200);
  uint64_t turned_away = 0;
  for (const auto& one : traffic) turned_away += one->turned_away();
  EXPECT_GT(turned_away, 0u);
}

TEST(IoHoldTest, TheTasksErrorIsTheResultAndRequestsGoOn) {
  IoGate gate;
  IoHold hold(gate);
  const auto failed =
      hold.Run([]() -> vmm::Result<void> { return vmm::Error(vmm::Code::kDataLoss, "no"); });
  EXPECT_FALSE(failed.ok());
  std::atomic<int> inside{0};
  std::atomic<bool> stop{true};
  Traffic traffic(hold, inside);
  traffic.Run(stop);
  hold.Leave(hold.EnterNow());
  EXPECT_TRUE(gate.IsEmpty());
}

}  // namespace
}  // namespace kvmbus::virtdev
