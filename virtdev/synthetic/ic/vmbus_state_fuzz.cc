// SPDX-License-Identifier: Apache-2.0
// Saved states of a VMBus with the integration services on it from hostile files: what is refused
// changes nothing or leaves a bus as after a reset, what is taken is saved and restored as the same
// bytes, and the guest, whose rings may be anywhere in its memory then, may go on. After a reset
// the next guest finds all devices.
#include <google/protobuf/stubs/logging.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/fakes/fake_vmbus_guest.h"
#include "tests/fakes/manual_clock.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/hostile_state.h"
#include "virtdev/synthetic/ic/heartbeat.h"
#include "virtdev/synthetic/ic/shutdown.h"
#include "virtdev/synthetic/ic/timesync.h"
#include "virtdev/synthetic/ic/vss.h"
#include "virtdev/vmbus/vmbus_server.h"
#include "vmm/os/log.h"

namespace {

using namespace kvmbus;           // NOLINT: a fuzz target is a program
using namespace kvmbus::virtdev;  // NOLINT
using Input = tests::FuzzInput;
using tests::FakeVmbusGuest;

constexpr uint64_t kPages = 64, kFirstRingPage = 16;
constexpr int kDevices = 4;

/// A bus and what is on it; nothing of the guest.
class Host {
 public:
  explicit Host(vmm::GuestMemory& memory) : server_(*loop_, memory, synic_, {}) {
    for (VmbusDevice* device :
         std::initializer_list<VmbusDevice*>{&heartbeat_, &shutdown_, &timesync_, &backup_})
      KVMBUS_ASSERT(server_.AddDevice(*device).ok());
  }

  VmbusServer& server() { return server_; }
  tests::FakeSynic& synic() { return synic_; }
  vmm::Loop& loop() { return *loop_; }

  void Turn() {
    for (int i = 0; i < 3; ++i) loop_->RunOnce(0);
    for (const auto& message : synic_.messages)
      KVMBUS_ASSERT(message.vp < synic_.vps && message.payload.size() <= vmbus::kMaxMessageBytes);
    synic_.messages.clear();
  }
  void Advance(uint64_t ns) { clock_.Advance(ns); }
  void RingAll() {
    for (const auto& [id, doorbell] : synic_.doorbells) vmm::SignalEventFd(doorbell);
  }
  /// What the administrator asks for.
  void Ask(uint32_t what) {
    const auto done = [](const vmm::Result<void>&) {};
    if (what % 3 == 0) shutdown_.RequestShutdown(false, false, done);
    if (what % 3 == 1) backup_.Freeze(1'000'000'000, done);
    if (what % 3 == 2) backup_.Thaw(done);
  }

 private:
  tests::ManualClock clock_;
  std::unique_ptr<vmm::Loop> loop_ = *vmm::Loop::Create(clock_);
  tests::FakeSynic synic_;
  HeartbeatDevice heartbeat_{"heartbeat", {}, *loop_, nullptr};
  ShutdownDevice shutdown_{"shutdown", {}, *loop_};
  TimesyncDevice timesync_{"timesync", {}, *loop_, [] { return 7; }};
  VssDevice backup_{"backup", {}, *loop_, VssDevice::Options()};
  VmbusServer server_;
};

/// Answers what the host said on this channel, the negotiation with the last of the versions.
void Answer(FakeVmbusGuest& guest, FakeVmbusGuest::Channel& channel) {
  constexpr size_t kBody = sizeof(ic::PipeHeader) + sizeof(ic::Header);
  for (tests::FakeVmbusRing::Packet& packet : guest.Receive(channel)) {
    ic::Header header;
    KVMBUS_ASSERT(packet.payload.size() >= kBody);
    std::memcpy(&header, packet.payload.data() + sizeof(ic::PipeHeader), sizeof(header));
    header.flags = ic::kFlagTransaction | ic::kFlagResponse;
    std::memcpy(packet.payload.data() + sizeof(ic::PipeHeader), &header, sizeof(header));
    if (header.type == ic::kTypeNegotiate) {
      uint8_t* body = packet.payload.data() + kBody;
      ic::NegotiateHeader counts;
      std::memcpy(&counts, body, sizeof(counts));
      const ic::NegotiateHeader chosen{1, 1, 0};
      std::memcpy(body, &chosen, sizeof(chosen));
      std::memmove(body + 8, body + 12, 4);
      std::memmove(body + 12, body + 8 + 4 * (counts.framework_count + counts.message_count - 1),
                   4);
    }
    (void)guest.Send(channel, packet);
    guest.Pump();
  }
}

/// A guest boots, as far as `progress` says.
void Boot(FakeVmbusGuest& guest, unsigned progress) {
  if (progress == 0) return;
  KVMBUS_ASSERT(guest.Connect(vmbus::kVersionIron));
  guest.RequestOffers();
  KVMBUS_ASSERT(guest.all_offers_delivered && guest.channels.size() == kDevices);
  if (progress == 1) return;
  for (auto& [id, channel] : guest.channels) KVMBUS_ASSERT(guest.Open(channel, 1));
  for (unsigned answers = 2; answers < progress; ++answers) {
    guest.Pump();
    for (auto& [id, channel] : guest.channels) {
      KVMBUS_ASSERT(answers != 2 || channel.receive->used() != 0);  // the host speaks first
      Answer(guest, channel);
    }
  }
}

/// What the bus saves, another one takes, as the same bytes.
std::string CheckSaves(Host& host, vmm::GuestMemory& memory) {
  const std::string saved = *host.server().Save();
  Host other(memory);
  KVMBUS_ASSERT(other.server().Restore(1, saved).ok());
  KVMBUS_ASSERT(*other.server().Save() == saved);
  return saved;
}

/// A saved machine, of which only VMBus and its guest's memory matter.
struct SavedMachine {
  std::string state;
  std::vector<uint8_t> memory;
};

/// Booting takes long, and there are few ways to do it.
const SavedMachine& Booted(unsigned progress, bool asked, vmm::GuestMemory& memory) {
  static std::map<std::pair<unsigned, bool>, SavedMachine> machines;
  SavedMachine& machine = machines[{progress, asked}];
  if (!machine.memory.empty()) return machine;
  machine.memory.resize(kPages * vmm::kPageSize);
  KVMBUS_ASSERT(memory.Write(0, machine.memory.data(), machine.memory.size()));
  Host host(memory);
  host.server().Start();
  FakeVmbusGuest guest(host.synic(), memory, host.loop(), kFirstRingPage);
  Boot(guest, progress);
  for (uint32_t what = 0; asked && what < 2; ++what) host.Ask(what);
  host.server().Stop();
  machine.state = CheckSaves(host, memory);
  KVMBUS_ASSERT(memory.Read(0, machine.memory.data(), machine.memory.size()));
  return machine;
}

/// Nothing is left of any guest.
void CheckIsReset(const std::string& saved, vmm::GuestMemory& memory) {
  state::Vmbus left, fresh;
  Host host(memory);
  KVMBUS_ASSERT(left.ParseFromString(saved) && fresh.ParseFromString(*host.server().Save()));
  KVMBUS_ASSERT(left.outgoing().empty() && left.incoming().empty());
  KVMBUS_ASSERT(!left.control().connected() && left.control().gpadls().empty());
  KVMBUS_ASSERT(left.control().offers_size() == kDevices && left.devices_size() == kDevices);
  for (int i = 0; i < kDevices; ++i) {
    KVMBUS_ASSERT(left.control().offers(i).state() == 0);
    KVMBUS_ASSERT(left.devices(i).state() == fresh.devices(i).state());
  }
}

/// The whole, the control plane or one device is hostile.
std::string HostileBus(Input& input, const std::string& valid) {
  const uint8_t part = input.Byte();
  state::Vmbus message;
  KVMBUS_ASSERT(message.ParseFromString(valid) && message.devices_size() == kDevices);
  if (part % 4 == 0) return tests::HostileState(input, valid);
  if (part % 4 == 1) {
    state::VmbusControl* control = message.mutable_control();
    if (!control->ParseFromString(tests::HostileState(input, control->SerializeAsString())))
      return valid;
  } else {
    std::string* state = message.mutable_devices(part / 4 % kDevices)->mutable_state();
    *state = tests::HostileState(input, *state);
  }
  return message.SerializeAsString();
}

/// The guest does anything with what was restored.
void Run(Host& host, vmm::GuestMemory& memory, uint32_t seed) {
  std::minstd_rand random(seed);
  host.server().Start();
  for (int step = 0; step < 20; ++step) {
    std::vector<uint8_t> message(8 + random() / 256 % 60);
    for (uint8_t& byte : message) byte = static_cast<uint8_t>(random() / 256 % 8);
    std::fill_n(message.begin() + 1, 7, uint8_t{0});
    message[0] = static_cast<uint8_t>(random() / 256 % 24);
    if (step % 2 == 0) (void)host.synic().sink->OnGuestMessage(4, 1, message);
    const uint64_t gpa = (kFirstRingPage + random() / 256 % 16) * vmm::kPageSize;
    KVMBUS_ASSERT(memory.WriteObject(gpa + random() / 256 % 8 * 4, uint32_t{message[0]} * 8));
    host.RingAll();
    host.Advance(random() / 256 % 4 * 1'000'000'000);
    host.Ask(random() / 256);
    host.Turn();
  }
  host.server().Stop();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  spdlog::set_level(spdlog::level::off);
  google::protobuf::SetLogHandler(nullptr);
  static const std::unique_ptr<vmm::GuestMemory> memory = [] {
    const vmm::MemoryRange ranges[] = {{0, kPages * vmm::kPageSize}};
    return *vmm::GuestMemory::Create(ranges);
  }();
  Input input(bytes, size);
  const uint8_t shape = input.Byte(), seed = input.Byte();
  const SavedMachine& machine = Booted(shape % 5, (shape & 0x40) != 0, *memory);
  KVMBUS_ASSERT(memory->Write(0, machine.memory.data(), machine.memory.size()));
  Host host(*memory);
  if ((shape & 0x80) != 0) {  // in place
    KVMBUS_ASSERT(host.server().Restore(1, machine.state).ok());
    host.server().Start();
    host.Turn();
    host.server().Stop();
  }
  const std::string before = *host.server().Save();
  if (host.server().Restore(1, HostileBus(input, machine.state)).ok()) {
    state::Vmbus saved;
    KVMBUS_ASSERT(saved.ParseFromString(CheckSaves(host, *memory)));
    for (const std::string& message : saved.incoming())
      KVMBUS_ASSERT(message.size() <= vmbus::kMaxMessageBytes);
    Run(host, *memory, 1u + seed);
    (void)CheckSaves(host, *memory);
  } else if (const std::string after = *host.server().Save(); after != before) {
    CheckIsReset(after, *memory);
  }
  host.server().Reset();
  host.synic().messages.clear();
  host.server().Start();
  FakeVmbusGuest next(host.synic(), *memory, host.loop(), kFirstRingPage);
  Boot(next, seed % 8 == 0 ? 3 : 1);
  host.server().Stop();
  return 0;
}
