// SPDX-License-Identifier: Apache-2.0
// The integration services with a test as their guest.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "virtdev/synthetic/ic/heartbeat.h"
#include "virtdev/synthetic/ic/ic_test_guest.h"
#include "virtdev/synthetic/ic/shutdown.h"
#include "virtdev/synthetic/ic/timesync.h"

namespace kvmbus::virtdev {
namespace {

using namespace ic;
using ic_test::IcTest;
using ic_test::kInstance;

TEST_F(IcTest, HeartbeatFollowsTheGuest) {
  int changes = 0;
  HeartbeatDevice device("heartbeat", kInstance, *loop_, [&] { ++changes; });
  Open(device);
  EXPECT_EQ(device.status(), HeartbeatStatus::kNoContact);
  Negotiate({3, 0});
  Message beat = Take();
  uint64_t sequence;
  std::memcpy(&sequence, beat.body.data(), sizeof(sequence));
  ++sequence;
  std::memcpy(beat.body.data(), &sequence, sizeof(sequence));
  Answer(beat);
  EXPECT_EQ(device.status(), HeartbeatStatus::kOk);
  Advance(2);
  (void)Take();  // and the guest falls silent
  Advance(2 * HeartbeatDevice::kMissesUntilLost + 1);
  EXPECT_EQ(device.status(), HeartbeatStatus::kLostContact);
  EXPECT_EQ(channel_->waiting(), 0u) << "one question is enough";
  device.Close(0);
  EXPECT_EQ(device.status(), HeartbeatStatus::kNoContact);
  EXPECT_EQ(changes, 3);
}

TEST_F(IcTest, ShutdownIsAcceptedRefusedOrTimesOut) {
  ShutdownDevice device("shutdown", kInstance, *loop_);
  std::vector<vmm::Code> results;
  const auto done = [&](const vmm::Result<void>& result) {
    results.push_back(result.ok() ? vmm::Code::kOk : result.error().code());
  };
  device.RequestShutdown(false, false, done);
  EXPECT_EQ(results.back(), vmm::Code::kFailedPrecondition) << "nobody is there yet";
  Open(device);
  Negotiate({3, 2});
  device.RequestShutdown(true, true, done);
  const Message request = Take();
  ASSERT_EQ(request.body.size(), sizeof(ShutdownBody));
  ShutdownBody body;
  std::memcpy(&body, request.body.data(), sizeof(body));
  EXPECT_EQ(body.flags, kShutdownForce | kShutdownRestart);
  device.RequestShutdown(false, false, done);
  EXPECT_EQ(results.back(), vmm::Code::kUnavailable) << "one at a time";
  Answer(request);
  EXPECT_EQ(results.back(), vmm::Code::kOk);
  device.RequestShutdown(false, false, done);
  Answer(Take(), 0x80004005);
  EXPECT_EQ(results.back(), vmm::Code::kFailedPrecondition);
  device.RequestShutdown(false, false, done);
  const Message late = Take();
  Advance(31);
  EXPECT_EQ(results.back(), vmm::Code::kDeadlineExceeded);
  Answer(late);
  EXPECT_EQ(results.size(), 5u) << "a late answer is nobody's";
  device.RequestShutdown(false, false, done);
  device.Close(0);
  EXPECT_EQ(results.back(), vmm::Code::kUnavailable);
  EXPECT_EQ(results.size(), 6u);
}

TEST_F(IcTest, TimeIsSetOnceThenSampledAndSetAgainAfterAStop) {
  uint64_t reference = 77;
  TimesyncDevice device("timesync", kInstance, *loop_, [&] { return reference; });
  Open(device);
  Negotiate({4, 0});
  const auto take_flags = [&] {
    const Message message = Take();
    TimesyncBody4 body;
    EXPECT_EQ(message.body.size(), sizeof(body));
    std::memcpy(&body, message.body.data(), sizeof(body));
    EXPECT_EQ(body.host_time, vmm::FiletimeOfRealtime(clock_.RealtimeNs()));
    EXPECT_EQ(body.reference_time, reference);
    Answer(message);
    return body.flags;
  };
  EXPECT_EQ(take_flags(), kTimesyncSync);
  Advance(5);
  EXPECT_EQ(take_flags(), kTimesyncSample);
  device.Stop();
  device.Start();
  Turn();
  EXPECT_EQ(take_flags(), kTimesyncSync);
  device.Close(0);
}

TEST_F(IcTest, ASessionWithoutAChannelIsRefused) {
  HeartbeatDevice device("heartbeat", kInstance, *loop_, nullptr);
  device.Reset();
  const std::string fresh = *device.Save();
  for (const auto& begin : {+[](state::IntegrationService* s) { s->set_negotiation_sent(true); },
                            +[](state::IntegrationService* s) { s->set_transaction_pending(true); },
                            +[](state::IntegrationService* s) {
                              s->set_negotiated(true);
                              s->set_version_major(3);
                            }}) {
    state::IntegrationService state;
    begin(&state);
    EXPECT_FALSE(device.Restore(state.SerializeAsString(), {}).ok());
    EXPECT_EQ(*device.Save(), fresh);
  }
  Open(device);
  Negotiate({3, 0});  // the host speaks first still
  device.Close(0);
}

TEST_F(IcTest, StateSurvivesASaveInTheMiddleOfATransaction) {
  HeartbeatDevice device("heartbeat", kInstance, *loop_, nullptr);
  Open(device);
  Negotiate({3, 0});
  const Message beat = Take();
  device.Stop();
  const std::string saved = *device.Save();
  device.Close(0);
  device.Reset();
  std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> channels;
  channels.emplace_back(uint16_t{0}, channel_->Endpoint());
  ASSERT_TRUE(device.Restore(saved, std::move(channels)).ok());
  EXPECT_EQ(*device.Save(), saved);
  device.Start();
  Turn();
  Answer(beat);
  EXPECT_EQ(device.status(), HeartbeatStatus::kOk);
  device.Close(0);
}

TEST_F(IcTest, GarbageFromTheGuestOrASaveIsCountedNotFatal) {
  std::mt19937 random(3);
  HeartbeatDevice device("heartbeat", kInstance, *loop_, nullptr);
  Open(device);
  for (int i = 0; i < 500; ++i) {
    std::vector<uint8_t> packet(random() % 64);
    for (uint8_t& byte : packet) byte = static_cast<uint8_t>(random() % 8);
    channel_->PushInBand(random(), std::move(packet), random() % 2 == 0);
    Turn();
  }
  (void)channel_->Take();
  uint64_t malformed = 0;
  device.VisitCounters([&](std::string_view name, const vmm::Counter& counter) {
    if (name == "ic_malformed") malformed = counter.value();
  });
  EXPECT_GT(malformed, 100u);
  device.Stop();
  const std::string saved = *device.Save();
  device.Close(0);
  for (int i = 0; i < 200; ++i) {
    std::string bad = saved;
    bad.resize(random() % (bad.size() + 1));
    for (char& c : bad) {
      if (random() % 4 == 0) c = static_cast<char>(random());
    }
    const std::string before = *device.Save();
    if (!device.Restore(bad, {}).ok()) {
      EXPECT_EQ(*device.Save(), before) << "refused, and changed";
    }
  }
}

}  // namespace
}  // namespace kvmbus::virtdev
