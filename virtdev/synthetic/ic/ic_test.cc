// SPDX-License-Identifier: Apache-2.0
// The integration services with a test as their guest.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "tests/fakes/fake_channel.h"
#include "tests/fakes/manual_clock.h"
#include "virtdev/synthetic/ic/heartbeat.h"
#include "virtdev/synthetic/ic/shutdown.h"
#include "virtdev/synthetic/ic/timesync.h"
#include "vmm/os/log.h"

namespace kvmbus::virtdev {
namespace {

using namespace ic;
using tests::FakeChannel;

constexpr vmm::Guid kInstance = vmm::MakeGuid("11111111-2222-3333-4444-555555555555");

class IcTest : public testing::Test {
 protected:
  IcTest() {
    spdlog::set_level(spdlog::level::off);
    loop_ = vmm::Loop::Create(clock_).value();
    const vmm::MemoryRange ram[] = {{0, 1 << 20}};
    memory_ = vmm::GuestMemory::Create(ram).value();
    channel_ = std::make_unique<FakeChannel>(*memory_);
  }

  void Turn() {
    for (int i = 0; i < 5; ++i) loop_->RunOnce(0);
  }
  void Advance(uint64_t seconds) {
    for (uint64_t i = 0; i < seconds; ++i) {
      clock_.Advance(1'000'000'000);
      Turn();
    }
  }
  void Open(IcDevice& device) {
    device.Start();
    ASSERT_TRUE(device.Open(0, channel_->Endpoint()).ok());
    Turn();
  }

  struct Message {
    Header header;
    std::vector<uint8_t> body;
    std::vector<uint8_t> packet;
  };
  /// The host's next message; fails the test if there is none.
  Message Take() {
    Message message{};
    const auto sent = channel_->Take(1);
    EXPECT_EQ(sent.size(), 1u);
    if (sent.empty()) return message;
    message.packet = sent[0].payload;
    EXPECT_GE(message.packet.size(), sizeof(PipeHeader) + sizeof(Header));
    std::memcpy(&message.header, message.packet.data() + sizeof(PipeHeader), sizeof(Header));
    message.body.assign(message.packet.begin() + sizeof(PipeHeader) + sizeof(Header),
                        message.packet.end());
    EXPECT_EQ(message.header.body_bytes, message.body.size());
    return message;
  }
  /// Answers in place, as Linux does.
  void Answer(Message message, uint32_t status = 0) {
    message.header.flags = kFlagTransaction | kFlagResponse;
    message.header.status = status;
    std::memcpy(message.packet.data() + sizeof(PipeHeader), &message.header, sizeof(Header));
    std::copy(message.body.begin(), message.body.end(),
              message.packet.begin() + sizeof(PipeHeader) + sizeof(Header));
    channel_->PushInBand(0, message.packet, false);
    Turn();
  }
  void Negotiate(Version version) {
    Message offer = Take();
    EXPECT_EQ(offer.header.type, kTypeNegotiate);
    const NegotiateHeader chosen{1, 1, 0};
    const Version versions[2] = {{3, 0}, version};
    std::memcpy(offer.body.data(), &chosen, sizeof(chosen));
    std::memcpy(offer.body.data() + sizeof(chosen), versions, sizeof(versions));
    Answer(offer);
  }

  tests::ManualClock clock_;
  std::unique_ptr<vmm::Loop> loop_;
  std::unique_ptr<vmm::GuestMemory> memory_;
  std::unique_ptr<FakeChannel> channel_;
};

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
    EXPECT_EQ(body.host_time, clock_.RealtimeNs() / 100 + k1601To1970);
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
  device.Stop();
  const std::string saved = *device.Save();
  device.Close(0);
  for (int i = 0; i < 200; ++i) {
    std::string bad = saved;
    bad.resize(random() % (bad.size() + 1));
    for (char& c : bad) {
      if (random() % 4 == 0) c = static_cast<char>(random());
    }
    (void)device.Restore(bad, {});
  }
}

}  // namespace
}  // namespace kvmbus::virtdev
