// SPDX-License-Identifier: Apache-2.0
// Saved states of the chipset's devices from hostile files: what is refused changes nothing, what
// is taken is saved and restored as the same bytes, drives the device's outputs, and leaves it in a
// state that any access is safe in. So does what a guest's own accesses lead to.
#include <cstdint>
#include <memory>
#include <random>
#include <string>

#include "state/chipset.pb.h"
#include "tests/fakes/fake_vm.h"
#include "tests/fakes/manual_clock.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/hostile_state.h"
#include "virtdev/chipset/acpi_power.h"
#include "virtdev/chipset/generation_id.h"
#include "virtdev/chipset/rtc.h"
#include "virtdev/chipset/rtc_regs.h"
#include "virtdev/chipset/uart16550.h"
#include "virtdev/chipset/uart16550_regs.h"
#include "vmm/machine/layout.h"

namespace {

using namespace kvmbus;           // NOLINT: a fuzz target is a program
using namespace kvmbus::virtdev;  // NOLINT
using Input = tests::FuzzInput;

/// What is there whatever device is made.
struct Host {
  tests::ManualClock clock;
  vmm::GuestMemory& memory;
};

class Device {
 public:
  enum class Kind { kRtc, kUart, kPower, kGenerationId };

  Device(Kind kind, Host& host) : kind_(kind), host_(host) { Make(); }

  vmm::StateUnit& unit() { return *unit_; }

  /// Of the guest, or an event of the host.
  void Access(uint8_t how, uint8_t offset, uint64_t value) {
    const unsigned size = 1u << how / 4 % 4;
    if (how % 4 == 3) return HostEvent(value);
    if (io_ == nullptr) return;
    if (how % 4 == 2)
      (void)io_->IoRead(offset % 32, size);
    else
      io_->IoWrite(offset % 32, size, value);
  }

  /// The registers and what the device drives are of one mind.
  void CheckOutputs() {
    switch (kind_) {
      case Kind::kRtc:
        // A guest that waits for the end of an update would wait for ever.
        KVMBUS_ASSERT((Cmos(rtc::kRegisterA) & rtc::kAUpdateInProgress) == 0);
        KVMBUS_ASSERT(Cmos(rtc::kRegisterD) == rtc::kDValid);
        for (uint8_t index = 0; index < 128; ++index) (void)Cmos(index);
        break;
      case Kind::kUart: {
        const bool asserted = line_.level;
        KVMBUS_ASSERT(asserted == ((io_->IoRead(uart::kIirFcr, 1) & uart::kIirNone) == 0));
        break;
      }
      case Kind::kPower: {
        const uint64_t pending =
            (io_->IoRead(vmm::kPm1StatusOffset, 2) & io_->IoRead(vmm::kPm1EnableOffset, 2)) |
            (io_->IoRead(vmm::kGpe0StatusOffset, 2) & io_->IoRead(vmm::kGpe0EnableOffset, 2));
        KVMBUS_ASSERT(line_.level == (pending != 0));
        break;
      }
      case Kind::kGenerationId: {
        state::GenerationId saved;
        KVMBUS_ASSERT(saved.ParseFromString(*unit_->Save()));
        const auto seen = host_.memory.ReadObject<vmm::Guid>(vmm::kGenerationIdGpa);
        KVMBUS_ASSERT(seen.has_value() && seen->ToBytes() == saved.id());
        break;
      }
    }
  }

 private:
  void Make() {
    switch (kind_) {
      case Kind::kRtc:
        return Take(std::make_unique<Rtc>(host_.clock));
      case Kind::kUart:
        return Take(std::make_unique<Uart16550>("com1", line_, [](std::string_view) {}));
      case Kind::kPower:
        return Take(std::make_unique<AcpiPower>(line_, host_.clock, AcpiPower::Callbacks()));
      case Kind::kGenerationId:
        unit_ = std::make_unique<GenerationId>(host_.memory, vmm::Guid(), nullptr);
    }
  }
  template <typename T>
  void Take(std::unique_ptr<T> device) {
    io_ = device.get();
    unit_ = std::move(device);
  }
  uint8_t Cmos(uint8_t index) {
    io_->IoWrite(0, 1, index);
    return static_cast<uint8_t>(io_->IoRead(1, 1));
  }
  void HostEvent(uint64_t value) {
    switch (kind_) {
      case Kind::kRtc:
        return host_.clock.Advance(value % 1000 * 1'000'000'000);
      case Kind::kUart:
        return static_cast<Uart16550&>(*unit_).ReceiveBytes(std::string(value % 40, 'x'));
      case Kind::kPower: {
        auto& power = static_cast<AcpiPower&>(*unit_);
        if (value % 2 == 0)
          power.PressPowerButton();
        else
          power.RaiseGpe(value / 2 % 16);
        return;
      }
      case Kind::kGenerationId: {
        vmm::Guid id;
        id.bytes[0] = static_cast<uint8_t>(value);
        static_cast<GenerationId&>(*unit_).SetId(id);
      }
    }
  }

  const Kind kind_;
  Host& host_;
  tests::FakeLine line_;
  std::unique_ptr<vmm::StateUnit> unit_;
  vmm::IoHandler* io_ = nullptr;  ///< `unit_`, if it has registers
};

/// What the device saves, a fresh one takes, as the same bytes.
std::string CheckSaves(Device& device, Device::Kind kind, Host& host) {
  const std::string saved = *device.unit().Save();
  Device other(kind, host);
  KVMBUS_ASSERT(other.unit().Restore(other.unit().schema_version(), saved).ok());
  KVMBUS_ASSERT(*other.unit().Save() == saved);
  other.CheckOutputs();
  return saved;
}

/// The machine runs, is stopped, saved, and reset.
void Run(Device& device, Device::Kind kind, Host& host, uint32_t seed) {
  std::minstd_rand random(seed);
  device.unit().Start();
  for (int i = 0; i < 60; ++i) {
    const auto how = static_cast<uint8_t>(random() >> 8), at = static_cast<uint8_t>(random() >> 8);
    device.Access(how, at, random() >> 4);
  }
  device.unit().Stop();
  (void)CheckSaves(device, kind, host);
  device.unit().Reset();
  (void)CheckSaves(device, kind, host);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static const std::unique_ptr<vmm::GuestMemory> memory = [] {
    const vmm::MemoryRange ranges[] = {{0, 1 << 20}};
    return *vmm::GuestMemory::Create(ranges);
  }();
  Host host{{}, *memory};
  Input input(bytes, size);
  const auto kind = static_cast<Device::Kind>(input.Byte() % 4);
  const uint8_t schema_version = input.Byte();
  Device device(kind, host);
  device.unit().Start();
  for (uint8_t accesses = input.Byte() % 64; accesses != 0 && !input.empty(); --accesses) {
    const uint8_t how = input.Byte(), at = input.Byte();
    device.Access(how, at, input.Word());
  }
  device.unit().Stop();
  const std::string before = CheckSaves(device, kind, host);
  const std::string state = tests::HostileState(input, before);
  if (device.unit().Restore(schema_version, state).ok()) {
    (void)CheckSaves(device, kind, host);
    device.CheckOutputs();
  } else {
    KVMBUS_ASSERT(*device.unit().Save() == before);
  }
  Run(device, kind, host, 1u + schema_version);
  return 0;
}
