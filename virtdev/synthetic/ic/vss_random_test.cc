// SPDX-License-Identifier: Apache-2.0
// Random lives of a guest with a backup service that is slow, dies, answers out of order, and of a
// host that freezes it in the middle of anything: in the end it is never left frozen.
#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>

#include "tests/fakes/fake_channel.h"
#include "tests/fakes/manual_clock.h"
#include "virtdev/synthetic/ic/vss.h"
#include "vmm/os/log.h"

namespace kvmbus::virtdev {
namespace {

using namespace ic;
using Packet = std::vector<uint8_t>;

constexpr uint64_t kSecondNs = 1'000'000'000;

/// The guest's driver and its service.
class ModelGuest {
 public:
  explicit ModelGuest(tests::FakeChannel& channel) : channel_(&channel) {}

  bool frozen() const { return frozen_; }
  unsigned times_frozen() const { return times_frozen_; }
  void KillService() { service_ = false; }
  void StartService() { service_ = true; }

  /// Takes the next message; `slow`: a freeze takes until FinishFreeze.
  void Work(bool slow) {
    for (auto& sent : channel_->Take(1)) {
      if (TypeOf(sent.payload) == kTypeNegotiate)
        AnswerNegotiation(std::move(sent.payload));
      else if (OperationOf(sent.payload) == kVssFreeze && slow && !slow_freeze_)
        slow_freeze_ = std::move(sent.payload);
      else
        Serve(std::move(sent.payload));
    }
  }
  /// Even one whose service has died may have frozen something.
  void FinishFreeze() {
    if (!slow_freeze_) return;
    SetFrozen();
    Answer(*std::exchange(slow_freeze_, std::nullopt), service_);
  }
  /// The driver goes and comes back with other rings: nobody hears of a freeze under way.
  void Reload(tests::FakeChannel& channel) {
    if (slow_freeze_) SetFrozen();
    slow_freeze_.reset();
    channel_ = &channel;
  }
  void Reboot(tests::FakeChannel& channel) {
    Reload(channel);
    frozen_ = false;
  }

 private:
  static uint16_t TypeOf(const Packet& packet) {
    Header header;
    std::memcpy(&header, packet.data() + sizeof(PipeHeader), sizeof(header));
    return header.type;
  }
  static uint8_t OperationOf(const Packet& packet) {
    return packet.at(sizeof(PipeHeader) + sizeof(Header));
  }
  void SetFrozen() {
    frozen_ = true;
    ++times_frozen_;
  }
  void Serve(Packet packet) {
    if (service_ && OperationOf(packet) == kVssFreeze) SetFrozen();
    if (service_ && OperationOf(packet) == kVssThaw) frozen_ = false;
    Answer(std::move(packet), service_);
  }
  void Answer(Packet packet, bool success) {
    Header header;
    std::memcpy(&header, packet.data() + sizeof(PipeHeader), sizeof(header));
    header.flags = kFlagTransaction | kFlagResponse;
    header.status = success ? 0 : 0x80004005;
    std::memcpy(packet.data() + sizeof(PipeHeader), &header, sizeof(header));
    channel_->PushInBand(0, std::move(packet), false);
  }
  void AnswerNegotiation(Packet packet) {
    const NegotiateHeader chosen{1, 1, 0};
    const Version versions[2] = {{3, 0}, {5, 0}};
    uint8_t* body = packet.data() + sizeof(PipeHeader) + sizeof(Header);
    std::memcpy(body, &chosen, sizeof(chosen));
    std::memcpy(body + sizeof(chosen), versions, sizeof(versions));
    Answer(std::move(packet), true);
  }

  tests::FakeChannel* channel_;
  bool frozen_ = false;
  unsigned times_frozen_ = 0;
  bool service_ = true;
  std::optional<Packet> slow_freeze_;
};

class Life {
 public:
  explicit Life(uint64_t seed) : random_(seed) {
    spdlog::set_level(spdlog::level::off);
    loop_ = vmm::Loop::Create(clock_).value();
    const vmm::MemoryRange ram[] = {{0, 1 << 20}};
    memory_ = vmm::GuestMemory::Create(ram).value();
    channel_ = std::make_unique<tests::FakeChannel>(*memory_);
    guest_ = std::make_unique<ModelGuest>(*channel_);
    device_ = NewDevice();
    device_->Start();
    Open();
  }
  ~Life() { device_->Close(0); }

  const ModelGuest& guest() const { return *guest_; }
  unsigned calls_not_answered() const { return calls_; }

  void Step() {
    switch (random_() % 24) {
      case 0:
        return Stop();
      case 1:
        return SaveAndRestore();
      case 2:
        return Reset();
      case 3:
        return CloseChannel();
      case 4:
        return guest_->KillService();
      case 5:
        return channel_->RefuseWrites(random_() % 2 == 0);
      case 6:
        return Pass(random_() % 40);
      case 7:
      case 8:
        return guest_->StartService();
      case 9:
      case 10:
        return Pass(random_() % 3);
      case 11:
      case 12:
      case 13:
        return Freeze();
      case 14:
        return Thaw();
      case 15:
        return guest_->FinishFreeze();
      default:
        Start();
        Turn();
        guest_->Work(random_() % 3 == 0);
        Turn();
    }
  }
  /// All is well from now on, and nobody does anything; time passes until every timer has run.
  void Heal() {
    Start();
    channel_->RefuseWrites(false);
    channel_->Push({PacketType::kCompletion, false, 0, {}, {}});  // has a refused host look again
    guest_->StartService();
    for (int second = 0; second < 100; ++second) {
      guest_->FinishFreeze();
      for (int i = 0; i < 8; ++i) {
        guest_->Work(false);
        Turn();
      }
      Pass(1);
    }
  }

 private:
  std::unique_ptr<VssDevice> NewDevice() {
    VssDevice::Options options;
    options.thaw_attempts = 10'000;  // a life is shorter
    return std::make_unique<VssDevice>("backup", vmm::Guid(), *loop_, options);
  }
  void Turn() {
    for (int i = 0; i < 3; ++i) loop_->RunOnce(0);
  }
  void Pass(uint64_t seconds) {
    for (uint64_t i = 0; i < seconds; ++i) {
      clock_.Advance(kSecondNs);
      Turn();
    }
  }
  void Open() {
    ASSERT_TRUE(device_->Open(0, channel_->Endpoint()).ok());
    Turn();
  }
  void Start() { device_->Start(); }
  void Stop() { device_->Stop(); }
  void CloseChannel() {
    device_->Close(0);
    channel_ = std::make_unique<tests::FakeChannel>(*memory_);
    guest_->Reload(*channel_);
    Open();
  }
  void Reset() {
    device_->Stop();
    device_->Close(0);
    device_->Reset();
    channel_ = std::make_unique<tests::FakeChannel>(*memory_);
    guest_->Reboot(*channel_);
    device_->Start();
    Open();
  }
  void SaveAndRestore() {
    device_->Stop();
    const std::string saved = *device_->Save();
    device_->Close(0);
    if (random_() % 2 == 0)
      device_->Reset();
    else
      device_ = NewDevice();
    std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> channels;
    channels.emplace_back(uint16_t{0}, channel_->Endpoint());
    ASSERT_TRUE(device_->Restore(saved, std::move(channels)).ok());
    ASSERT_EQ(*device_->Save(), saved);
    device_->Start();
    Turn();
  }
  void Freeze() {
    ++calls_;
    device_->Freeze(random_() % 30 * kSecondNs, [this](const vmm::Result<void>&) { --calls_; });
  }
  void Thaw() {
    ++calls_;
    device_->Thaw([this](const vmm::Result<void>&) { --calls_; });
  }

  std::mt19937_64 random_;
  tests::ManualClock clock_;
  std::unique_ptr<vmm::Loop> loop_;
  std::unique_ptr<vmm::GuestMemory> memory_;
  std::unique_ptr<tests::FakeChannel> channel_;
  std::unique_ptr<ModelGuest> guest_;
  std::unique_ptr<VssDevice> device_;
  unsigned calls_ = 0;
};

TEST(VssRandomTest, NoGuestIsLeftFrozen) {
  unsigned frozen = 0, frozen_at_the_end = 0;
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    Life life(seed);
    for (int step = 0; step < 120; ++step) life.Step();
    frozen_at_the_end += life.guest().frozen() ? 1 : 0;
    life.Heal();
    ASSERT_FALSE(life.guest().frozen()) << "seed " << seed;
    ASSERT_EQ(life.calls_not_answered(), 0u) << "seed " << seed;
    frozen += life.guest().times_frozen();
  }
  // The sequences are worth something.
  EXPECT_GT(frozen, 2000u);
  EXPECT_GT(frozen_at_the_end, 100u);
}

}  // namespace
}  // namespace kvmbus::virtdev
