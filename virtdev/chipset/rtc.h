// SPDX-License-Identifier: Apache-2.0
/// \file
/// Rtc: the battery-backed clock and its 128 bytes.
/// Implements: time in BCD or binary, 12 or 24 hours, century, setting. Missing: alarm, periodic
/// and update interrupts (guests on Hyper-V time themselves by its own timers). Reference:
/// MC146818A data sheet.
#pragma once

#include <array>
#include <mutex>

#include "vmm/device/device.h"
#include "vmm/os/clock.h"

namespace kvmbus::virtdev {

/// Register accesses come under the device's lock from the bus.
class Rtc final : public vmm::StateUnit, public vmm::IoHandler {
 public:
  explicit Rtc(const vmm::Clock& clock);

  std::mutex& lock() { return mutex_; }

  uint64_t IoRead(uint64_t offset, unsigned size) override;
  void IoWrite(uint64_t offset, unsigned size, uint64_t value) override;

  std::string_view unit_name() const override { return "rtc"; }
  void Reset() override;
  vmm::Result<std::string> Save() override;
  vmm::Result<void> Restore(uint32_t schema_version, std::string_view state) override;

 private:
  static constexpr size_t kBytes = 128;
  struct State {
    uint8_t index = 0;
    std::array<uint8_t, kBytes> cmos{};
    int64_t offset_seconds = 0;  ///< guest time less host time
  };

  static State PowerOn();
  bool Setting() const;
  uint8_t Read(uint8_t index);
  void Write(uint8_t index, uint8_t value);
  void LoadTime();   // clock to registers
  void StoreTime();  // registers to offset
  uint8_t Encode(unsigned value) const;
  unsigned Decode(uint8_t value) const;

  const vmm::Clock& clock_;
  std::mutex mutex_;
  State state_;
};

}  // namespace kvmbus::virtdev
