// SPDX-License-Identifier: Apache-2.0
// Freezes and thaws, and every way in which they go wrong: a thaw is sent in each.
#include "virtdev/synthetic/ic/vss.h"

#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <utility>

#include "virtdev/synthetic/ic/ic_test_guest.h"

namespace kvmbus::virtdev {
namespace {

using namespace ic;
using ic_test::kInstance;

constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr uint32_t kFail = 0x80004005;

class VssTest : public ic_test::IcTest {
 protected:
  VssTest() : device_("backup", kInstance, *loop_, Options()) {}
  ~VssTest() override { device_.Close(0); }

  static VssDevice::Options Options() {
    VssDevice::Options options;
    options.thaw_attempts = 4;
    return options;
  }
  void OpenAndNegotiate() {
    Open(device_);
    Negotiate({5, 0});
  }
  void Reopen() {
    device_.Close(0);
    (void)channel_->Take();
    ASSERT_TRUE(device_.Open(0, channel_->Endpoint()).ok());
    Turn();
  }

  using Outcome = std::optional<vmm::Result<void>>;
  void Freeze(uint64_t seconds = 30) {
    freeze_.reset();
    device_.Freeze(seconds * kSecondNs, [this](const vmm::Result<void>& result) {
      EXPECT_FALSE(freeze_.has_value()) << "told twice";
      freeze_ = result;
    });
    Turn();
  }
  void Thaw() {
    thaw_.reset();
    device_.Thaw([this](const vmm::Result<void>& result) {
      EXPECT_FALSE(thaw_.has_value()) << "told twice";
      thaw_ = result;
    });
    Turn();
  }
  /// kUnknown: it has not been told yet.
  static vmm::Code CodeOf(const Outcome& outcome) {
    if (!outcome) return vmm::Code::kUnknown;
    return outcome->ok() ? vmm::Code::kOk : outcome->error().code();
  }
  static std::string TextOf(const Outcome& outcome) {
    return outcome && !outcome->ok() ? outcome->error().ToString() : "";
  }

  Message Expect(uint8_t operation) {
    Message message = Take();
    EXPECT_EQ(message.header.type, kTypeVss);
    EXPECT_EQ(message.body.size(), sizeof(VssBody));
    EXPECT_EQ(message.body.empty() ? 0 : message.body[0], operation);
    return message;
  }
  void ExpectSilence() { EXPECT_EQ(channel_->waiting(), 0u); }
  void GetFrozen() {
    Freeze();
    Answer(Expect(kVssCheckBackup));
    Answer(Expect(kVssFreeze));
    ASSERT_EQ(CodeOf(freeze_), vmm::Code::kOk);
    ASSERT_TRUE(device_.frozen());
  }
  /// The freeze that the guest did not answer in time.
  Message GiveUpFreeze() {
    Freeze(30);
    Answer(Expect(kVssCheckBackup));
    const Message freeze = Expect(kVssFreeze);
    Advance(30);
    return freeze;
  }
  uint64_t CounterOf(const std::string& name) {
    uint64_t value = 0;
    device_.VisitCounters([&](std::string_view found, const vmm::Counter& counter) {
      if (found == name) value = counter.value();
    });
    return value;
  }

  VssDevice device_;
  Outcome freeze_;
  Outcome thaw_;
};

TEST_F(VssTest, FreezesAndThaws) {
  Freeze();
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kFailedPrecondition) << "nobody is there yet";
  OpenAndNegotiate();
  for (int i = 0; i < 3; ++i) {
    GetFrozen();
    Advance(5);
    ExpectSilence();
    Thaw();
    EXPECT_EQ(CodeOf(thaw_), vmm::Code::kUnknown);
    Answer(Expect(kVssThaw));
    EXPECT_EQ(CodeOf(thaw_), vmm::Code::kOk);
    Advance(1000);
    ExpectSilence();
  }
  EXPECT_EQ(CounterOf("vss_freezes"), 3u);
  EXPECT_EQ(CounterOf("vss_freezes_ended_early"), 0u);
}

TEST_F(VssTest, AGuestWithoutItsServiceIsNotFrozen) {
  OpenAndNegotiate();
  Freeze();
  Answer(Expect(kVssCheckBackup), kFail);
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kFailedPrecondition);
  EXPECT_NE(TextOf(freeze_).find("hv_vss_daemon"), std::string::npos) << TextOf(freeze_);
  Advance(1000);
  ExpectSilence();
}

TEST_F(VssTest, ASilentGuestIsAskedNoMore) {
  OpenAndNegotiate();
  Freeze(20);
  const Message check = Expect(kVssCheckBackup);
  Advance(20);
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kDeadlineExceeded);
  Answer(check);
  Advance(1000);
  ExpectSilence();
  GetFrozen();
}

TEST_F(VssTest, AFailedFreezeIsFollowedByAThaw) {
  OpenAndNegotiate();
  Freeze();
  Answer(Expect(kVssCheckBackup));
  Answer(Expect(kVssFreeze), kFail);
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kFailedPrecondition);
  Answer(Expect(kVssThaw));
  Advance(1000);
  ExpectSilence();
}

TEST_F(VssTest, AnUnansweredFreezeIsFollowedByAThawAndItsLateAnswerByAnother) {
  OpenAndNegotiate();
  const Message freeze = GiveUpFreeze();
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kDeadlineExceeded);
  const Message thaw = Expect(kVssThaw);
  Answer(freeze);  // in the order of the questions
  Answer(thaw);
  Answer(Expect(kVssThaw));
  Advance(1000);
  ExpectSilence();

  const Message second = GiveUpFreeze();
  Answer(Expect(kVssThaw));
  Advance(60);
  ExpectSilence();
  Answer(second);  // after its thaw
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kDeadlineExceeded);
  Answer(Expect(kVssThaw));
  Advance(1000);
  ExpectSilence();
}

TEST_F(VssTest, ALateAnswerEndsALaterFreeze) {
  OpenAndNegotiate();
  const Message late = GiveUpFreeze();
  Answer(Expect(kVssThaw));
  GetFrozen();
  Answer(late);
  EXPECT_FALSE(device_.frozen());
  Answer(Expect(kVssThaw));
  Thaw();
  Answer(Expect(kVssThaw));
  EXPECT_EQ(CodeOf(thaw_), vmm::Code::kFailedPrecondition) << "it was not frozen until then";
}

TEST_F(VssTest, ALateAnswerIsNotTakenForAThawOfTheSameNumber) {
  OpenAndNegotiate();
  const Message late = GiveUpFreeze();
  Answer(Expect(kVssThaw));
  for (;;) {
    Thaw();
    const Message thaw = Expect(kVssThaw);
    if (thaw.header.transaction_id == late.header.transaction_id) break;
    Answer(thaw);
  }
  Answer(late);
  EXPECT_EQ(CodeOf(thaw_), vmm::Code::kUnknown);
  Advance(10);
  Answer(Expect(kVssThaw));
  Answer(Expect(kVssThaw));
  Advance(1000);
  ExpectSilence();
}

TEST_F(VssTest, NobodyHoldsAGuestForLong) {
  OpenAndNegotiate();
  GetFrozen();
  Advance(9);
  ExpectSilence();
  Advance(1);
  EXPECT_FALSE(device_.frozen());
  Answer(Expect(kVssThaw));
  EXPECT_EQ(CounterOf("vss_freezes_ended_early"), 1u);
  Thaw();
  Answer(Expect(kVssThaw));
  EXPECT_EQ(CodeOf(thaw_), vmm::Code::kFailedPrecondition) << "whoever was late hears of it";
  EXPECT_NE(TextOf(thaw_).find("limit of 10 s"), std::string::npos) << TextOf(thaw_);
  Thaw();
  Answer(Expect(kVssThaw));
  EXPECT_NE(TextOf(thaw_).find("was not frozen; it was"), std::string::npos) << TextOf(thaw_);
}

TEST_F(VssTest, OneAtATime) {
  OpenAndNegotiate();
  Outcome second;
  const auto freeze_too = [&] {
    second.reset();
    device_.Freeze(kSecondNs, [&](const vmm::Result<void>& result) { second = result; });
    return CodeOf(second);
  };
  Freeze();
  EXPECT_EQ(freeze_too(), vmm::Code::kUnavailable);
  Answer(Expect(kVssCheckBackup));
  EXPECT_EQ(freeze_too(), vmm::Code::kUnavailable);
  Answer(Expect(kVssFreeze));
  EXPECT_EQ(freeze_too(), vmm::Code::kUnavailable);
  Thaw();
  EXPECT_EQ(freeze_too(), vmm::Code::kUnavailable);
  Outcome other;
  device_.Thaw([&](const vmm::Result<void>& result) { other = result; });
  EXPECT_EQ(CodeOf(other), vmm::Code::kUnavailable);
  Answer(Expect(kVssThaw));
  EXPECT_EQ(CodeOf(thaw_), vmm::Code::kOk);
  GetFrozen();
}

TEST_F(VssTest, AThawEndsAFreezeUnderWay) {
  OpenAndNegotiate();
  Freeze();
  const Message check = Expect(kVssCheckBackup);
  Thaw();
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kCancelled);
  Answer(check);
  Answer(Expect(kVssThaw));
  EXPECT_EQ(CodeOf(thaw_), vmm::Code::kFailedPrecondition);
  Freeze();
  Answer(Expect(kVssCheckBackup));
  const Message freeze = Expect(kVssFreeze);
  Thaw();
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kCancelled);
  const Message thaw = Expect(kVssThaw);
  Answer(freeze);
  Answer(thaw);
  Answer(Expect(kVssThaw));
  EXPECT_EQ(CodeOf(thaw_), vmm::Code::kFailedPrecondition);
  Advance(1000);
  ExpectSilence();
}

TEST_F(VssTest, AThawThatIsRefusedIsRepeatedUntilTheServiceIsBack) {
  OpenAndNegotiate();
  GetFrozen();
  Thaw();
  Answer(Expect(kVssThaw), kFail);
  EXPECT_EQ(CodeOf(thaw_), vmm::Code::kFailedPrecondition);
  EXPECT_NE(TextOf(thaw_).find("hv_vss_daemon"), std::string::npos) << TextOf(thaw_);
  Freeze();
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kUnavailable);
  Advance(5);
  Answer(Expect(kVssThaw), kFail);
  Thaw();  // does not wait for the next attempt
  Answer(Expect(kVssThaw));
  Advance(1000);
  ExpectSilence();
  EXPECT_EQ(CounterOf("vss_thaws_given_up"), 0u);
  GetFrozen();
}

TEST_F(VssTest, AThawIsGivenUpAfterSomeAttemptsAndStaysOwed) {
  OpenAndNegotiate();
  GetFrozen();
  Thaw();
  std::vector<Message> thaws;
  for (int i = 0; i < 4; ++i) {
    thaws.push_back(Expect(kVssThaw));
    ExpectSilence();
    if (i % 2 == 0)
      Advance(10);  // no answer
    else
      Answer(thaws.back(), kFail), Advance(5);
  }
  EXPECT_EQ(CodeOf(thaw_), vmm::Code::kDeadlineExceeded);
  Advance(1000);
  ExpectSilence();
  EXPECT_EQ(CounterOf("vss_thaws_given_up"), 1u);
  EXPECT_EQ(CounterOf("vss_thaw_repeats"), 3u);
  Freeze();
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kFailedPrecondition);
  ExpectSilence();
  device_.Stop();  // a new start is a new chance
  device_.Start();
  Turn();
  Answer(Expect(kVssThaw), kFail);
  Thaw();
  Answer(Expect(kVssThaw));
  GetFrozen();
}

TEST_F(VssTest, AFullRingDelaysTheThaw) {
  OpenAndNegotiate();
  GetFrozen();
  channel_->RefuseWrites(true);
  Thaw();
  Advance(7);
  ExpectSilence();
  channel_->RefuseWrites(false);
  Advance(5);
  Answer(Expect(kVssThaw));
  EXPECT_EQ(CodeOf(thaw_), vmm::Code::kDeadlineExceeded);
  Advance(1000);
  ExpectSilence();
  channel_->RefuseWrites(true);
  Freeze();
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kUnavailable);
  channel_->RefuseWrites(false);
  Freeze();
  const Message check = Expect(kVssCheckBackup);
  channel_->RefuseWrites(true);
  Answer(check);
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kUnavailable);
  Advance(1000);
  ExpectSilence();
}

TEST_F(VssTest, AStopEndsAFreezeAndTheStartThaws) {
  OpenAndNegotiate();
  GetFrozen();
  device_.Stop();
  EXPECT_FALSE(device_.frozen());
  Advance(1000);
  Freeze();
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kFailedPrecondition) << "it is stopped";
  EXPECT_NE(TextOf(freeze_).find("resume it"), std::string::npos) << TextOf(freeze_);
  device_.Start();
  Turn();
  Answer(Expect(kVssThaw));
  Thaw();
  Answer(Expect(kVssThaw));
  EXPECT_EQ(CodeOf(thaw_), vmm::Code::kFailedPrecondition);

  Freeze();
  Answer(Expect(kVssCheckBackup));
  const Message freeze = Expect(kVssFreeze);
  device_.Stop();
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kCancelled);
  device_.Start();
  Turn();
  const Message thaw = Expect(kVssThaw);
  Answer(freeze);
  Answer(thaw);
  Answer(Expect(kVssThaw));
  Freeze();
  (void)Expect(kVssCheckBackup);
  device_.Stop();
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kCancelled);
  device_.Start();
  Advance(1000);
  ExpectSilence();

  GetFrozen();
  Thaw();
  (void)Expect(kVssThaw);
  device_.Stop();
  EXPECT_EQ(CodeOf(thaw_), vmm::Code::kCancelled);
  device_.Start();
  Turn();
  Answer(Expect(kVssThaw));
  Advance(1000);
  ExpectSilence();
}

TEST_F(VssTest, AClosedChannelLeavesAThawForTheNextOne) {
  OpenAndNegotiate();
  GetFrozen();
  Reopen();
  EXPECT_FALSE(device_.frozen());
  Advance(1000);
  Negotiate({5, 0});
  Answer(Expect(kVssThaw));
  Freeze();
  Answer(Expect(kVssCheckBackup));
  (void)Expect(kVssFreeze);
  Reopen();
  EXPECT_EQ(CodeOf(freeze_), vmm::Code::kUnavailable);
  Negotiate({5, 0});
  (void)Expect(kVssThaw);
  Reopen();  // and again before it has answered
  Negotiate({5, 0});
  Answer(Expect(kVssThaw));
  Reopen();
  Negotiate({5, 0});
  Advance(1000);
  ExpectSilence();
}

TEST_F(VssTest, AResetEndsTheDebt) {
  OpenAndNegotiate();
  GetFrozen();
  device_.Stop();
  device_.Close(0);
  device_.Reset();
  device_.Start();
  ASSERT_TRUE(device_.Open(0, channel_->Endpoint()).ok());
  Turn();
  Negotiate({5, 0});
  Advance(1000);
  ExpectSilence();
  Thaw();
  Answer(Expect(kVssThaw));
  EXPECT_EQ(CodeOf(thaw_), vmm::Code::kFailedPrecondition) << "whoever froze it hears of it";
}

// Save, reset and restore in place, and the same elsewhere.
TEST_F(VssTest, WhoeverRestoresAFrozenGuestThawsIt) {
  OpenAndNegotiate();
  GetFrozen();
  device_.Stop();
  const std::string saved = *device_.Save();
  device_.Close(0);
  device_.Reset();
  const auto restore = [&](VssDevice& device) {
    std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> channels;
    channels.emplace_back(uint16_t{0}, channel_->Endpoint());
    ASSERT_TRUE(device.Restore(saved, std::move(channels)).ok());
    EXPECT_EQ(*device.Save(), saved);
    device.Start();
    Turn();
    Answer(Expect(kVssThaw));
    Advance(1000);
    ExpectSilence();
  };
  restore(device_);
  Thaw();
  Answer(Expect(kVssThaw));
  EXPECT_EQ(CodeOf(thaw_), vmm::Code::kFailedPrecondition) << "it was not frozen all the time";
  device_.Close(0);
  VssDevice other("backup", kInstance, *loop_, Options());
  restore(other);
  other.Close(0);
}

TEST_F(VssTest, ADeviceThatIsAskedFromItsOwnAnswers) {
  OpenAndNegotiate();
  Outcome nested;
  device_.Freeze(kSecondNs, [&](const vmm::Result<void>&) {
    device_.Thaw([&](const vmm::Result<void>& result) { nested = result; });
  });
  Answer(Expect(kVssCheckBackup));
  Answer(Expect(kVssFreeze));
  Answer(Expect(kVssThaw));
  EXPECT_EQ(CodeOf(nested), vmm::Code::kOk);
  nested.reset();
  device_.Freeze(kSecondNs, [&](const vmm::Result<void>&) {
    device_.Thaw([&](const vmm::Result<void>& result) { nested = result; });
  });
  Answer(Expect(kVssCheckBackup));
  (void)Expect(kVssFreeze);
  device_.Stop();
  EXPECT_EQ(CodeOf(nested), vmm::Code::kFailedPrecondition);
  device_.Start();
  Turn();
  Answer(Expect(kVssThaw));
  Advance(1000);
  ExpectSilence();
}

}  // namespace
}  // namespace kvmbus::virtdev
