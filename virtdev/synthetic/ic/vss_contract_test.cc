// SPDX-License-Identifier: Apache-2.0
// The device contract, of a device whose registers are the packets of a guest.
#include <gtest/gtest.h>

#include <cstring>
#include <utility>

#include "tests/fakes/device_contract.h"
#include "tests/fakes/fake_channel.h"
#include "tests/fakes/manual_clock.h"
#include "virtdev/synthetic/ic/vss.h"
#include "vmm/os/log.h"

namespace kvmbus::virtdev {
namespace {

/// A machine with that device alone: it runs whenever the guest does something.
class VssMachine final : public vmm::StateUnit, public vmm::IoHandler {
 public:
  VssMachine() {
    spdlog::set_level(spdlog::level::off);
    loop_ = vmm::Loop::Create(clock_).value();
    const vmm::MemoryRange ram[] = {{0, 1 << 20}};
    memory_ = vmm::GuestMemory::Create(ram).value();
    channel_ = std::make_unique<tests::FakeChannel>(*memory_);
    device_ = std::make_unique<VssDevice>("backup", vmm::Guid(), *loop_, VssDevice::Options());
  }
  ~VssMachine() override { device_->Close(0); }

  std::string_view unit_name() const override { return device_->device_name(); }
  void Start() override { device_->Start(); }
  void Stop() override { device_->Stop(); }
  void Reset() override {
    device_->Stop();
    device_->Close(0);
    open_ = false;
    device_->Reset();
  }
  vmm::Result<std::string> Save() override {
    device_->Stop();
    return device_->Save();
  }
  /// The channel is the bus's: it is as it is now.
  vmm::Result<void> Restore(uint32_t, std::string_view state) override {
    device_->Stop();
    const std::string before = *device_->Save();
    device_->Close(0);
    const std::string closed = *device_->Save();
    auto restored = device_->Restore(state, Channels());
    if (restored.ok()) return restored;
    EXPECT_EQ(*device_->Save(), closed);
    EXPECT_TRUE(device_->Restore(before, Channels()).ok());
    return restored;
  }

  uint64_t IoRead(uint64_t offset, unsigned) override {
    device_->Start();
    clock_.Advance(offset * 1'000'000'000);
    Turn();
    return 0;
  }
  void IoWrite(uint64_t offset, unsigned, uint64_t value) override {
    device_->Start();
    if (!open_) open_ = device_->Open(0, channel_->Endpoint()).ok();
    if (value % 4 == 0) device_->Freeze(value % 50 * 1'000'000'000, [](const auto&) {});
    if (value % 7 == 0) device_->Thaw([](const auto&) {});
    Turn();
    for (auto& sent : channel_->Take()) Answer(std::move(sent.payload), offset, value);
    Turn();
  }

 private:
  void Turn() {
    for (int i = 0; i < 3; ++i) loop_->RunOnce(0);
  }
  std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> Channels() {
    std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> channels;
    if (open_) channels.emplace_back(uint16_t{0}, channel_->Endpoint());
    return channels;
  }
  void Answer(std::vector<uint8_t> packet, uint64_t offset, uint64_t value) {
    ic::Header header;
    std::memcpy(&header, packet.data() + sizeof(ic::PipeHeader), sizeof(header));
    header.flags = ic::kFlagTransaction | ic::kFlagResponse;
    header.status = offset % 8 == 7 ? 1 : 0;
    std::memcpy(packet.data() + sizeof(ic::PipeHeader), &header, sizeof(header));
    if (header.type == ic::kTypeNegotiate) {
      const ic::NegotiateHeader chosen{1, 1, 0};
      const ic::Version versions[2] = {{3, 0}, {5, 0}};
      uint8_t* body = packet.data() + sizeof(ic::PipeHeader) + sizeof(header);
      std::memcpy(body, &chosen, sizeof(chosen));
      std::memcpy(body + sizeof(chosen), versions, sizeof(versions));
    } else if (value % 5 == 0) {
      return;  // silence
    } else if (value % 11 == 0) {
      packet[value / 11 % packet.size()] ^= 1 + static_cast<uint8_t>(value >> 32) % 255;
    }
    channel_->PushInBand(0, std::move(packet), false);
  }

  tests::ManualClock clock_;
  std::unique_ptr<vmm::Loop> loop_;
  std::unique_ptr<vmm::GuestMemory> memory_;
  std::unique_ptr<tests::FakeChannel> channel_;
  std::unique_ptr<VssDevice> device_;
  bool open_ = false;
};

struct VssFixture {
  static constexpr uint64_t kIoBytes = 8;
  static constexpr bool kKeepsStateOverReset = false;
  void Make() { machine = std::make_unique<VssMachine>(); }
  vmm::StateUnit& unit() { return *machine; }
  vmm::IoHandler& io() { return *machine; }
  std::unique_ptr<VssMachine> machine;
};

}  // namespace
}  // namespace kvmbus::virtdev

namespace kvmbus::tests {
INSTANTIATE_TYPED_TEST_SUITE_P(Vss, DeviceContractTest, virtdev::VssFixture);
}  // namespace kvmbus::tests
