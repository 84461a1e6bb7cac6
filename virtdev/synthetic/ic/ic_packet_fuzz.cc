// SPDX-License-Identifier: Apache-2.0
// A hostile guest on the channel of each integration service, while the machine stops, is saved and
// restored and its administrator asks for things: no answer is told twice, no message is too long.
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "tests/fakes/fake_channel.h"
#include "tests/fakes/manual_clock.h"
#include "tests/fuzz/fuzz_input.h"
#include "virtdev/synthetic/ic/heartbeat.h"
#include "virtdev/synthetic/ic/shutdown.h"
#include "virtdev/synthetic/ic/timesync.h"
#include "virtdev/synthetic/ic/vss.h"
#include "vmm/os/log.h"

namespace {

using namespace kvmbus;           // NOLINT: a fuzz target is a program
using namespace kvmbus::virtdev;  // NOLINT
using Input = tests::FuzzInput;
using Packet = std::vector<uint8_t>;

constexpr size_t kMaxPacketBytes = 4096 - 16;  ///< Linux's buffer, without the ring's own header

class Machine {
 public:
  Machine(vmm::GuestMemory& memory, vmm::Loop& loop, tests::ManualClock& clock, uint8_t shape)
      : loop_(loop), clock_(clock), channel_(memory), kind_(shape % 4) {
    device_ = NewDevice();
    device_->Start();
    Open();
    if ((shape & 0x10) != 0) channel_.set_capacity(100);
    if ((shape & 0x20) != 0) AnswerFirst(0, true);
  }
  ~Machine() {
    device_->Close(0);
    device_.reset();
    Turn();
    KVMBUS_ASSERT(told_ <= asked_);
  }

  void Step(Input& input) {
    const uint8_t action = input.Byte();
    switch (action % 16) {
      case 0:
        clock_.Advance(input.Byte() * uint64_t{500'000'000});
        return Turn();
      case 1:
        device_->Stop();
        return;
      case 2:
        return SaveAndRestore();
      case 3:
        device_->Close(0);
        (void)channel_.Take();
        last_.clear();
        return Open();
      case 4:
      case 5:
        return Ask(input.Byte());
      case 6:
      case 7:
        return PushPacket(input);
      case 8:
        return channel_.RefuseWrites(input.Byte() % 2 == 0);
      case 9:
        return AnswerLast(input.Byte());
      default:
        device_->Start();
        return AnswerFirst(input.Byte(), (action & 0x10) == 0);
    }
  }

 private:
  std::unique_ptr<VmbusDevice> NewDevice() {
    const vmm::Guid instance;
    switch (kind_) {
      case 0:
        return std::make_unique<HeartbeatDevice>("heartbeat", instance, loop_, nullptr);
      case 1:
        return std::make_unique<ShutdownDevice>("shutdown", instance, loop_);
      case 2:
        return std::make_unique<TimesyncDevice>("timesync", instance, loop_, [] { return 7; });
      default:
        return std::make_unique<VssDevice>("backup", instance, loop_, VssDevice::Options());
    }
  }
  void Turn() {
    for (int i = 0; i < 3; ++i) loop_.RunOnce(0);
  }
  void Open() {
    KVMBUS_ASSERT(device_->Open(0, channel_.Endpoint()).ok());
    Turn();
  }
  void Ask(uint8_t how) {
    const auto done = [this, told = std::make_shared<bool>(false)](const vmm::Result<void>&) {
      KVMBUS_ASSERT(!std::exchange(*told, true));
      ++told_;
    };
    if (kind_ == 1) {
      ++asked_;
      static_cast<ShutdownDevice&>(*device_).RequestShutdown((how & 1) != 0, (how & 2) != 0, done);
    } else if (kind_ == 3) {
      ++asked_;
      auto& vss = static_cast<VssDevice&>(*device_);
      if (how % 4 == 0)
        vss.Thaw(done);
      else
        vss.Freeze(how * uint64_t{100'000'000}, done);
    }
    Turn();
  }
  void SaveAndRestore() {
    device_->Stop();
    const std::string saved = *device_->Save();
    device_->Close(0);
    device_ = NewDevice();
    std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> channels;
    channels.emplace_back(uint16_t{0}, channel_.Endpoint());
    KVMBUS_ASSERT(device_->Restore(saved, std::move(channels)).ok());
    KVMBUS_ASSERT(*device_->Save() == saved);
    device_->Start();
    Turn();
  }
  void PushPacket(Input& input) {
    constexpr PacketType kTypes[] = {PacketType::kInBand, PacketType::kInBand,
                                     PacketType::kCompletion, PacketType::kGpaDirect};
    IncomingPacket packet;
    packet.type = kTypes[input.Byte() % 4];
    packet.payload = input.Bytes(input.Byte());
    if (channel_.unread() < 64) channel_.Push(std::move(packet));
    Turn();
  }
  /// As Linux does, or nearly so.
  void AnswerFirst(uint8_t how, bool well) {
    Turn();
    for (auto& sent : channel_.Take(1)) {
      KVMBUS_ASSERT(sent.type == PacketType::kInBand && sent.payload.size() <= kMaxPacketBytes);
      last_ = std::move(sent.payload);
      AnswerLast(how, well);
    }
  }
  void AnswerLast(uint8_t how, bool well = false) {
    if (last_.empty()) return;
    Packet packet = last_;
    ic::Header header;
    std::memcpy(&header, packet.data() + sizeof(ic::PipeHeader), sizeof(header));
    header.flags = ic::kFlagTransaction | ic::kFlagResponse;
    header.status = well ? 0 : how;
    std::memcpy(packet.data() + sizeof(ic::PipeHeader), &header, sizeof(header));
    if (header.type == ic::kTypeNegotiate) {
      ic::NegotiateHeader counts;
      uint8_t* body = packet.data() + sizeof(ic::PipeHeader) + sizeof(header);
      std::memcpy(&counts, body, sizeof(counts));
      const ic::NegotiateHeader chosen{1, 1, 0};
      std::memcpy(body, &chosen, sizeof(chosen));
      // The last framework, and the last version.
      std::memmove(body + 8, body + 8 + 4, 4);
      std::memmove(body + 12, body + 8 + 4 * (counts.framework_count + counts.message_count - 1),
                   4);
    }
    if (!well && how >= 0x80) packet[how % packet.size()] ^= how;
    if (!well && how >= 0xf0) packet.resize(how % packet.size());
    if (channel_.unread() < 64) channel_.PushInBand(0, std::move(packet), false);
    Turn();
  }

  vmm::Loop& loop_;
  tests::ManualClock& clock_;
  tests::FakeChannel channel_;
  const uint8_t kind_;
  std::unique_ptr<VmbusDevice> device_;
  Packet last_;  ///< that the guest took
  unsigned asked_ = 0, told_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  spdlog::set_level(spdlog::level::off);
  static const std::unique_ptr<vmm::GuestMemory> memory = [] {
    const vmm::MemoryRange ranges[] = {{0, 16 * vmm::kPageSize}};
    return *vmm::GuestMemory::Create(ranges);
  }();
  tests::ManualClock clock;
  const std::unique_ptr<vmm::Loop> loop = *vmm::Loop::Create(clock);
  Input input(bytes, size);
  Machine machine(*memory, *loop, clock, input.Byte());
  for (int steps = 0; steps < 200 && !input.empty(); ++steps) machine.Step(input);
  return 0;
}
