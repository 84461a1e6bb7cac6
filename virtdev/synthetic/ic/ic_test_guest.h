// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the tests of the integration services share: a guest that a test plays over a fake channel.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "tests/fakes/fake_channel.h"
#include "tests/fakes/manual_clock.h"
#include "virtdev/synthetic/ic/ic_device.h"
#include "vmm/os/log.h"

namespace kvmbus::virtdev::ic_test {

using namespace ic;

inline constexpr vmm::Guid kInstance = vmm::MakeGuid("11111111-2222-3333-4444-555555555555");

class IcTest : public testing::Test {
 protected:
  IcTest() {
    spdlog::set_level(spdlog::level::off);
    loop_ = vmm::Loop::Create(clock_).value();
    const vmm::MemoryRange ram[] = {{0, 1 << 20}};
    memory_ = vmm::GuestMemory::Create(ram).value();
    channel_ = std::make_unique<tests::FakeChannel>(*memory_);
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
    if (message.packet.empty()) return;  // there was none, which Take has said
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
  std::unique_ptr<tests::FakeChannel> channel_;
};

}  // namespace kvmbus::virtdev::ic_test
