// SPDX-License-Identifier: Apache-2.0
/// \file
/// The interfaces that a hypervisor implements: a VM, its virtual processors, and where their exits
/// go.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/device/device.h"
#include "vmm/hypervisor/boot_state.h"
#include "vmm/hypervisor/dirty_tracker.h"
#include "vmm/hypervisor/synic.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

/// What a guest reported through the crash MSRs (TLFS, HV_X64_MSR_CRASH_P0..P4 and CRASH_CTL).
struct GuestCrashReport {
  std::array<uint64_t, 5> parameters{};
  std::string message;  ///< raw text of the guest, at most 4 KiB; "" if it gave none
};

/// Where a virtual processor's exits go. Called on vCPU threads, several at once.
class ExitHandler {
 public:
  virtual ~ExitHandler() = default;
  virtual uint64_t PortRead(uint16_t port, unsigned size) = 0;
  virtual void PortWrite(uint16_t port, unsigned size, uint64_t value) = 0;
  virtual uint64_t MmioRead(uint64_t gpa, unsigned size) = 0;
  virtual void MmioWrite(uint64_t gpa, unsigned size, uint64_t value) = 0;
  virtual void OnGuestCrash(const GuestCrashReport& report) = 0;
  /// The guest asked for a reset (the Hyper-V reset MSR) or tripped into one (triple fault).
  virtual void OnResetRequest(std::string_view why) = 0;
  /// The processor cannot go on: "KVM internal error 1 at RIP ...". The machine stops.
  virtual void OnVcpuFailure(uint32_t index, Error error) = 0;
};

/// One virtual processor. Run belongs to its own thread, Kick to any, the rest to the main thread
/// while no thread is in Run.
class Vcpu {
 public:
  virtual ~Vcpu() = default;
  /// Runs the guest until Kick. On return registers are consistent: no instruction is half done.
  virtual void Run(ExitHandler& handler) = 0;
  /// Makes a current or the next Run return soon.
  virtual void Kick() = 0;
  virtual Result<void> SetBootState(const BootState& boot) = 0;
};

/// The hypervisor's part of a machine. It is a StateUnit: "hypervisor" saves and resets the
/// processors, the interrupt controllers, the clock and the Hyper-V partition.
class Vm : public StateUnit {
 public:
  virtual uint32_t vcpu_count() const = 0;
  virtual Vcpu& vcpu(uint32_t index) = 0;
  virtual SynicPorts& synic() = 0;
  virtual DirtyTracker& dirty_tracker() = 0;
  /// Lives as long as the VM. `gsi` is an I/O APIC pin.
  virtual InterruptLine& interrupt_line(uint32_t gsi) = 0;
};

}  // namespace kvmbus::vmm
