// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <memory>

#include "state/chipset.pb.h"
#include "tests/fakes/device_contract.h"
#include "tests/fakes/fake_vm.h"
#include "tests/fakes/manual_clock.h"
#include "virtdev/chipset/acpi_power.h"
#include "virtdev/chipset/acpi_power_regs.h"
#include "virtdev/chipset/generation_id.h"
#include "virtdev/chipset/rtc.h"
#include "virtdev/chipset/rtc_regs.h"
#include "virtdev/chipset/uart16550.h"
#include "virtdev/chipset/uart16550_regs.h"
#include "vmm/machine/layout.h"

namespace kvmbus::virtdev {
namespace {

struct UartFixture {
  static constexpr uint64_t kIoBytes = 8;
  static constexpr bool kKeepsStateOverReset = false;
  void Make() {
    uart = std::make_unique<Uart16550>("com1", line,
                                       [this](std::string_view bytes) { output += bytes; });
  }
  vmm::StateUnit& unit() { return *uart; }
  vmm::IoHandler& io() { return *uart; }
  tests::FakeLine line;
  std::string output;
  std::unique_ptr<Uart16550> uart;
};

struct RtcFixture {
  static constexpr uint64_t kIoBytes = 2;
  static constexpr bool kKeepsStateOverReset = true;  // battery-backed
  void Make() { rtc = std::make_unique<Rtc>(clock); }
  vmm::StateUnit& unit() { return *rtc; }
  vmm::IoHandler& io() { return *rtc; }
  tests::ManualClock clock;
  std::unique_ptr<Rtc> rtc;
};

struct PowerFixture {
  static constexpr uint64_t kIoBytes = vmm::kPowerPortBytes;
  static constexpr bool kKeepsStateOverReset = false;
  void Make() {
    AcpiPower::Callbacks callbacks;
    callbacks.soft_off = [this] { ++offs; };
    callbacks.reset = [this] { ++resets; };
    power = std::make_unique<AcpiPower>(line, clock, std::move(callbacks));
  }
  vmm::StateUnit& unit() { return *power; }
  vmm::IoHandler& io() { return *power; }
  tests::FakeLine line;
  tests::ManualClock clock;
  int offs = 0, resets = 0;
  std::unique_ptr<AcpiPower> power;
};

}  // namespace
}  // namespace kvmbus::virtdev

namespace kvmbus::tests {
using ChipsetDevices =
    testing::Types<virtdev::UartFixture, virtdev::RtcFixture, virtdev::PowerFixture>;
INSTANTIATE_TYPED_TEST_SUITE_P(Chipset, DeviceContractTest, ChipsetDevices);
}  // namespace kvmbus::tests

namespace kvmbus::virtdev {
namespace {

class UartTest : public testing::Test, public UartFixture {
 protected:
  UartTest() { Make(); }
  uint8_t Read(unsigned offset) { return static_cast<uint8_t>(uart->IoRead(offset, 1)); }
  void Write(unsigned offset, uint8_t value) { uart->IoWrite(offset, 1, value); }
};

TEST_F(UartTest, TransmitsAndInterruptsWhenEmpty) {
  using namespace uart;
  Write(kRbrThr, 'A');
  EXPECT_EQ(output, "A");
  EXPECT_FALSE(line.level);
  Write(kIer, kIerTransmit);
  EXPECT_TRUE(line.level);
  EXPECT_EQ(Read(kIirFcr), kIirTransmit);
  EXPECT_FALSE(line.level) << "reading IIR acknowledges it";
  EXPECT_EQ(Read(kIirFcr), kIirNone);
}

TEST_F(UartTest, ReceivedBytesComeInOrderWithAnInterrupt) {
  using namespace uart;
  Write(kIirFcr, kFcrEnable);
  Write(kIer, kIerReceive);
  uart->ReceiveBytes("hello world, and more than sixteen");
  EXPECT_TRUE(line.level);
  std::string got;
  while (Read(kLsr) & kLsrDataReady) got += static_cast<char>(Read(kRbrThr));
  EXPECT_EQ(got, "hello world, and more than sixteen");
  EXPECT_FALSE(line.level);
}

TEST_F(UartTest, LoopBackConnectsTheModemLines) {
  using namespace uart;
  Write(kMcr, kMcrLoop | kMcrRts | kMcrOut2);
  EXPECT_EQ(Read(kMsr), kMsrCts | kMsrDcd);
  Write(kRbrThr, 'x');
  EXPECT_EQ(output, "");
  EXPECT_EQ(Read(kRbrThr), 'x');
}

class RtcTest : public testing::Test, public RtcFixture {
 protected:
  RtcTest() { Make(); }
  uint8_t Read(uint8_t index) {
    rtc->IoWrite(0, 1, index);
    return static_cast<uint8_t>(rtc->IoRead(1, 1));
  }
  void Write(uint8_t index, uint8_t value) {
    rtc->IoWrite(0, 1, index);
    rtc->IoWrite(1, 1, value);
  }
};

TEST_F(RtcTest, TellsTheTimeInBcd) {
  using namespace rtc;
  clock.realtime_ns = 1'795'518'412ull * 1'000'000'000;  // 2026-11-24 11:06:52 UTC, a Tuesday
  EXPECT_EQ(Read(kYear), 0x26);
  EXPECT_EQ(Read(kCentury), 0x20);
  EXPECT_EQ(Read(kMonth), 0x11);
  EXPECT_EQ(Read(kDayOfMonth), 0x24);
  EXPECT_EQ(Read(kDayOfWeek), 3);
  EXPECT_EQ(Read(kHours), 0x11);
  EXPECT_EQ(Read(kMinutes), 0x06);
  EXPECT_EQ(Read(kSeconds), 0x52);
}

TEST_F(RtcTest, ATimeThatWasSetGoesOnAndSurvivesSaving) {
  using namespace rtc;
  Write(kRegisterB, kBSet | kB24Hours);
  for (const auto& [index, value] : {std::pair{kSeconds, 0x00},
                                     {kMinutes, 0x30},
                                     {kHours, 0x07},
                                     {kDayOfMonth, 0x01},
                                     {kMonth, 0x02},
                                     {kYear, 0x99},
                                     {kCentury, 0x19}})
    Write(index, static_cast<uint8_t>(value));
  Write(kRegisterB, kB24Hours);
  clock.Advance(65ull * 1'000'000'000);
  const std::string saved = *rtc->Save();
  Make();
  ASSERT_TRUE(rtc->Restore(1, saved).ok());
  EXPECT_EQ(Read(kYear), 0x99);
  EXPECT_EQ(Read(kMinutes), 0x31);
  EXPECT_EQ(Read(kSeconds), 0x05);
}

TEST_F(RtcTest, ATimeThatIsNoneIsNotTaken) {
  using namespace rtc;
  const uint8_t century = Read(kCentury);
  Write(kRegisterB, kBSet | kB24Hours | kBBinary);
  Write(kCentury, 250);
  Write(kRegisterB, kB24Hours);
  EXPECT_EQ(Read(kCentury), century);
  const std::string saved = *rtc->Save();
  Make();
  EXPECT_TRUE(rtc->Restore(1, saved).ok()) << "whatever a guest wrote";
}

TEST_F(RtcTest, AStateThatNoGuestCanBringAboutIsRefused) {
  using namespace rtc;
  state::Rtc saved;
  ASSERT_TRUE(saved.ParseFromString(*rtc->Save()));
  EXPECT_TRUE(rtc->Restore(1, saved.SerializeAsString()).ok());
  for (const auto& [index, value] :
       {std::pair{kRegisterA, kAUpdateInProgress}, {kRegisterC, 0x10}, {kRegisterD, 0x00}}) {
    state::Rtc bad = saved;
    (*bad.mutable_cmos())[index] = static_cast<char>(value);
    EXPECT_FALSE(rtc->Restore(1, bad.SerializeAsString()).ok()) << unsigned{index};
  }
}

class PowerTest : public testing::Test, public PowerFixture {
 protected:
  PowerTest() { Make(); }
};

TEST_F(PowerTest, SleepEnableWithTypeFiveIsSoftOff) {
  power->IoWrite(vmm::kPm1ControlOffset, 2, acpi::kSlpEn | 3u << acpi::kSlpTypShift);
  EXPECT_EQ(offs, 0);
  power->IoWrite(vmm::kPm1ControlOffset, 2, acpi::kSlpEn | vmm::kSleepTypeS5 << acpi::kSlpTypShift);
  EXPECT_EQ(offs, 1);
  EXPECT_EQ(power->IoRead(vmm::kPm1ControlOffset, 2) & acpi::kSlpEn, 0u) << "write-only";
}

TEST_F(PowerTest, TheResetRegisterResets) {
  power->IoWrite(vmm::kResetOffset, 1, vmm::kResetValue);
  EXPECT_EQ(resets, 1);
}

TEST_F(PowerTest, EventsRaiseTheLevelUntilTheyAreCleared) {
  power->PressPowerButton();
  EXPECT_FALSE(line.level);
  power->IoWrite(vmm::kPm1EnableOffset, 2, acpi::kPwrBtnSts);
  EXPECT_TRUE(line.level);
  power->IoWrite(vmm::kPm1StatusOffset, 2, acpi::kPwrBtnSts);
  EXPECT_FALSE(line.level);
  power->IoWrite(vmm::kGpe0EnableOffset, 2, 1);
  power->RaiseGpe(0);
  EXPECT_TRUE(line.level);
  power->IoWrite(vmm::kGpe0StatusOffset, 2, 1);
  EXPECT_FALSE(line.level);
}

TEST_F(PowerTest, TheTimerCountsAt3579545Hertz) {
  EXPECT_EQ(power->IoRead(vmm::kPmTimerOffset, 4) & 0xffffffff, 0u);
  clock.Advance(2'000'000'000);
  EXPECT_EQ(power->IoRead(vmm::kPmTimerOffset, 4) & 0xffffffff, 2 * acpi::kPmTimerHz);
}

TEST(GenerationIdTest, IsInGuestMemoryAndTellsOfAChange) {
  const vmm::MemoryRange ram[] = {{0, 1 << 20}};
  const auto memory = vmm::GuestMemory::Create(ram).value();
  int told = 0;
  GenerationId device(*memory, vmm::MakeGuid("11111111-2222-3333-4444-555555555555"),
                      [&] { ++told; });
  device.Start();
  EXPECT_EQ(memory->ReadObject<vmm::Guid>(vmm::kGenerationIdGpa)->ToString(),
            "11111111-2222-3333-4444-555555555555");
  EXPECT_EQ(told, 0);
  const std::string saved = *device.Save();
  const vmm::Guid other = vmm::Guid::Random();
  device.SetId(other);
  EXPECT_EQ(told, 1);
  EXPECT_EQ(*memory->ReadObject<vmm::Guid>(vmm::kGenerationIdGpa), other);
  ASSERT_TRUE(device.Restore(1, saved).ok());
  EXPECT_NE(*memory->ReadObject<vmm::Guid>(vmm::kGenerationIdGpa), other);
  EXPECT_FALSE(device.Restore(1, "x").ok());
}

}  // namespace
}  // namespace kvmbus::virtdev
