// SPDX-License-Identifier: Apache-2.0
#include "virtdev/chipset/acpi_power.h"

#include "state/chipset.pb.h"
#include "virtdev/chipset/acpi_power_regs.h"
#include "vmm/machine/layout.h"

namespace kvmbus::virtdev {

using namespace acpi;

namespace {

uint8_t ByteOf(uint32_t value, unsigned index) { return static_cast<uint8_t>(value >> 8 * index); }

/// Replaces byte `index` of a 16-bit register.
uint16_t WithByte(uint16_t value, unsigned index, uint8_t byte) {
  return static_cast<uint16_t>((value & ~(0xffu << 8 * index)) | static_cast<unsigned>(byte)
                                                                     << 8 * index);
}

bool Within(unsigned offset, uint16_t base, unsigned bytes) {
  return offset >= base && offset < base + bytes;
}

}  // namespace

AcpiPower::AcpiPower(vmm::InterruptLine& sci, const vmm::Clock& clock, Callbacks callbacks)
    : sci_(sci), clock_(clock), callbacks_(std::move(callbacks)) {
  state_.timer_base = 0u - ClockCount();
}

uint32_t AcpiPower::ClockCount() const {
  // Split, lest the product overflow after an hour.
  const uint64_t ns = clock_.MonotonicNs();
  const uint64_t seconds = ns / 1'000'000'000, rest = ns % 1'000'000'000;
  return static_cast<uint32_t>(seconds * kPmTimerHz + rest * kPmTimerHz / 1'000'000'000);
}

void AcpiPower::PressPowerButton() {
  std::lock_guard guard(mutex_);
  state_.pm1_status |= kPwrBtnSts;
  UpdateOutputs();
}

void AcpiPower::RaiseGpe(unsigned number) {
  KVMBUS_ASSERT(number < 16);
  std::lock_guard guard(mutex_);
  state_.gpe0_status = static_cast<uint16_t>(state_.gpe0_status | 1u << number);
  UpdateOutputs();
}

uint64_t AcpiPower::IoRead(uint64_t offset, unsigned size) {
  if (offset >= vmm::kPowerPortBytes) return ~uint64_t{0};
  if (offset == vmm::kPmTimerOffset && size == 4)
    return state_.timer_base + ClockCount();  // in one piece
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i)
    value |= uint64_t{ReadByte(static_cast<unsigned>(offset) + i)} << 8 * i;
  return value;
}

void AcpiPower::IoWrite(uint64_t offset, unsigned size, uint64_t value) {
  if (offset >= vmm::kPowerPortBytes) return;
  for (unsigned i = 0; i < size; ++i)
    WriteByte(static_cast<unsigned>(offset) + i, static_cast<uint8_t>(value >> 8 * i));
  UpdateOutputs();
}

uint8_t AcpiPower::ReadByte(unsigned offset) const {
  if (Within(offset, vmm::kPm1StatusOffset, 2))
    return ByteOf(state_.pm1_status, offset - vmm::kPm1StatusOffset);
  if (Within(offset, vmm::kPm1EnableOffset, 2))
    return ByteOf(state_.pm1_enable, offset - vmm::kPm1EnableOffset);
  if (Within(offset, vmm::kPm1ControlOffset, 2))
    return ByteOf(state_.pm1_control, offset - vmm::kPm1ControlOffset);
  if (Within(offset, vmm::kPmTimerOffset, 4))
    return ByteOf(state_.timer_base + ClockCount(), offset - vmm::kPmTimerOffset);
  if (Within(offset, vmm::kGpe0StatusOffset, 2))
    return ByteOf(state_.gpe0_status, offset - vmm::kGpe0StatusOffset);
  if (Within(offset, vmm::kGpe0EnableOffset, 2))
    return ByteOf(state_.gpe0_enable, offset - vmm::kGpe0EnableOffset);
  return 0;
}

void AcpiPower::WriteByte(unsigned offset, uint8_t value) {
  if (Within(offset, vmm::kPm1StatusOffset, 2)) {  // writing a one clears it
    state_.pm1_status &= static_cast<uint16_t>(
        ~(static_cast<unsigned>(value) << 8 * (offset - vmm::kPm1StatusOffset)));
  } else if (Within(offset, vmm::kPm1EnableOffset, 2)) {
    state_.pm1_enable =
        WithByte(state_.pm1_enable, offset - vmm::kPm1EnableOffset, value) & kPm1EnableMask;
  } else if (Within(offset, vmm::kPm1ControlOffset, 2)) {
    const uint16_t control = WithByte(state_.pm1_control, offset - vmm::kPm1ControlOffset, value);
    state_.pm1_control = static_cast<uint16_t>((control & ~kSlpEn) | kSciEn);
    const bool sleep = control & kSlpEn;
    if (sleep && (control & kSlpTypMask) >> kSlpTypShift == vmm::kSleepTypeS5 &&
        callbacks_.soft_off)
      callbacks_.soft_off();
  } else if (Within(offset, vmm::kGpe0StatusOffset, 2)) {
    state_.gpe0_status &= static_cast<uint16_t>(
        ~(static_cast<unsigned>(value) << 8 * (offset - vmm::kGpe0StatusOffset)));
  } else if (Within(offset, vmm::kGpe0EnableOffset, 2)) {
    state_.gpe0_enable = WithByte(state_.gpe0_enable, offset - vmm::kGpe0EnableOffset, value);
  } else if (offset == vmm::kResetOffset && value == vmm::kResetValue && callbacks_.reset) {
    callbacks_.reset();
  }
}

void AcpiPower::UpdateOutputs() {
  const bool asserted = (state_.pm1_status & state_.pm1_enable) != 0 ||
                        (state_.gpe0_status & state_.gpe0_enable) != 0;
  if (asserted == asserted_) return;
  asserted_ = asserted;
  sci_.Set(asserted);
}

void AcpiPower::Reset() {
  std::lock_guard guard(mutex_);
  state_ = State();
  state_.timer_base = 0u - ClockCount();
  UpdateOutputs();
}

vmm::Result<std::string> AcpiPower::Save() {
  std::lock_guard guard(mutex_);
  state::AcpiPower saved;
  saved.set_pm1_status(state_.pm1_status);
  saved.set_pm1_enable(state_.pm1_enable);
  saved.set_pm1_control(state_.pm1_control);
  saved.set_gpe0_status(state_.gpe0_status);
  saved.set_gpe0_enable(state_.gpe0_enable);
  saved.set_timer(state_.timer_base + ClockCount());
  return saved.SerializeAsString();
}

vmm::Result<void> AcpiPower::Restore(uint32_t, std::string_view bytes) {
  state::AcpiPower saved;
  if (!saved.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())) ||
      (saved.pm1_status() & ~uint32_t{kPm1StatusMask}) != 0 ||
      (saved.pm1_enable() & ~uint32_t{kPm1EnableMask}) != 0 || saved.pm1_control() > 0xffff ||
      (saved.pm1_control() & kSlpEn) != 0 || (saved.pm1_control() & kSciEn) == 0 ||
      saved.gpe0_status() > 0xffff || saved.gpe0_enable() > 0xffff)
    return vmm::Error(vmm::Code::kDataLoss, "saved state of ACPI power management is not valid");
  std::lock_guard guard(mutex_);
  state_.pm1_status = static_cast<uint16_t>(saved.pm1_status());
  state_.pm1_enable = static_cast<uint16_t>(saved.pm1_enable());
  state_.pm1_control = static_cast<uint16_t>(saved.pm1_control());
  state_.gpe0_status = static_cast<uint16_t>(saved.gpe0_status());
  state_.gpe0_enable = static_cast<uint16_t>(saved.gpe0_enable());
  state_.timer_base = saved.timer() - ClockCount();
  UpdateOutputs();
  return {};
}

}  // namespace kvmbus::virtdev
