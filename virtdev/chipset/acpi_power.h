// SPDX-License-Identifier: Apache-2.0
/// \file
/// AcpiPower: PM1 events and control, the PM timer, GPE0, the reset register, the power button.
/// Implements: the block of vmm/machine/layout.h, always in ACPI mode. Missing: timer carry events,
/// wake. Reference: ACPI 6.4, section 4.8.
#pragma once

#include <functional>
#include <mutex>

#include "vmm/device/device.h"
#include "vmm/os/clock.h"

namespace kvmbus::virtdev {

/// Register accesses come under the device's lock from the bus; the events take it themselves.
class AcpiPower final : public vmm::StateUnit, public vmm::IoHandler {
 public:
  struct Callbacks {
    std::function<void()> soft_off;  ///< on a vCPU thread
    std::function<void()> reset;     ///< on a vCPU thread
  };

  AcpiPower(vmm::InterruptLine& sci, const vmm::Clock& clock, Callbacks callbacks);

  std::mutex& lock() { return mutex_; }
  void PressPowerButton();
  /// Raises general-purpose event `number` (0..15).
  void RaiseGpe(unsigned number);

  uint64_t IoRead(uint64_t offset, unsigned size) override;
  void IoWrite(uint64_t offset, unsigned size, uint64_t value) override;

  std::string_view unit_name() const override { return "acpi-power"; }
  void Reset() override;
  vmm::Result<std::string> Save() override;
  vmm::Result<void> Restore(uint32_t schema_version, std::string_view state) override;

 private:
  struct State {
    uint16_t pm1_status = 0;
    uint16_t pm1_enable = 0;
    uint16_t pm1_control = 1;  ///< SCI_EN: there is no other mode
    uint16_t gpe0_status = 0;
    uint16_t gpe0_enable = 0;
    uint32_t timer_base = 0;  ///< added to the clock's count
  };

  uint32_t ClockCount() const;
  uint8_t ReadByte(unsigned offset) const;
  void WriteByte(unsigned offset, uint8_t value);
  void UpdateOutputs();

  vmm::InterruptLine& sci_;
  const vmm::Clock& clock_;
  const Callbacks callbacks_;
  std::mutex mutex_;
  bool asserted_ = false;
  State state_;
};

}  // namespace kvmbus::virtdev
