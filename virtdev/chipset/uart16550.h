// SPDX-License-Identifier: Apache-2.0
/// \file
/// Uart16550: a serial port (COM1), its other end a ConsoleSink.
/// Implements: FIFOs, interrupts by priority, loop-back, divisor latch, scratch. Missing: modem
/// status interrupts, parity and framing errors, timing (a byte leaves at once). Reference:
/// PC16550D data sheet.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string_view>

#include "vmm/device/device.h"

namespace kvmbus::virtdev {

/// Takes the bytes that the guest sends; called on vCPU threads, must not block.
using ConsoleSink = std::function<void(std::string_view bytes)>;

/// Register accesses come under the device's lock from the bus; ReceiveBytes takes it itself.
class Uart16550 final : public vmm::StateUnit, public vmm::IoHandler {
 public:
  static constexpr size_t kFifoBytes = 16;
  static constexpr size_t kInputLimit = 64u << 10;  ///< typed ahead; beyond it input is dropped

  Uart16550(std::string name, vmm::InterruptLine& interrupt, ConsoleSink sink);

  std::mutex& lock() { return mutex_; }
  /// Input for the guest; from the main thread.
  void ReceiveBytes(std::string_view bytes);

  uint64_t IoRead(uint64_t offset, unsigned size) override;
  void IoWrite(uint64_t offset, unsigned size, uint64_t value) override;

  std::string_view unit_name() const override { return name_; }
  void Reset() override;
  vmm::Result<std::string> Save() override;
  vmm::Result<void> Restore(uint32_t schema_version, std::string_view state) override;

 private:
  struct State {
    uint8_t ier = 0;
    uint8_t fcr = 0;
    uint8_t lcr = 0;
    uint8_t mcr = 0;
    uint8_t scr = 0;
    uint16_t divisor = 12;
    bool thr_interrupt = false;
    bool overrun = false;
    std::deque<uint8_t> receive;
  };

  uint8_t ReadRegister(unsigned offset);
  void WriteRegister(unsigned offset, uint8_t value);
  void Transmit(uint8_t byte);
  uint8_t InterruptId() const;
  uint8_t LineStatus();
  uint8_t ModemStatus() const;
  size_t FifoCapacity() const;
  void Refill();
  void UpdateOutputs();

  // Configuration and collaborators.
  const std::string name_;
  vmm::InterruptLine& interrupt_;
  const ConsoleSink sink_;
  // Book-keeping.
  std::mutex mutex_;
  std::deque<uint8_t> typed_ahead_;
  bool asserted_ = false;
  // State.
  State state_;
};

}  // namespace kvmbus::virtdev
