// SPDX-License-Identifier: Apache-2.0
/// \file
/// Machine: the processors, buses and units of one VM, and their life together.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "vmm/bus/io_bus.h"
#include "vmm/device/device.h"
#include "vmm/event/loop.h"
#include "vmm/hypervisor/vm.h"
#include "vmm/machine/life_cycle.h"
#include "vmm/machine/vcpu_threads.h"
#include "vmm/memory/guest_memory.h"

namespace kvmbus::vmm {

/// Home: the main loop's thread. The ExitHandler part and the Request functions may be called from
/// any.
class Machine final : public ExitHandler {
 public:
  struct Callbacks {
    std::function<void()> changed;  ///< the state or the crash report changed
    std::function<void(Code code, std::string reason)>
        ended;  ///< the machine is Off; once a power-on
    std::function<void(const GuestCrashReport&)> crashed;
  };

  Machine(Loop& loop, GuestMemory& memory, std::unique_ptr<Vm> vm, Callbacks callbacks);
  ~Machine() override;

  Vm& vm() { return *vm_; }
  GuestMemory& memory() { return memory_; }
  IoBus& ports() { return ports_; }
  IoBus& mmio() { return mmio_; }

  /// Units start in the order of addition, and stop in reverse. The hypervisor's own is always the
  /// first.
  void AddUnit(StateUnit& unit);
  /// Fills memory and says where the boot processor starts; called at power-on and at every reset.
  void SetBootLoader(std::function<Result<BootState>()> loader) {
    boot_loader_ = std::move(loader);
  }

  MachineState state() const { return state_; }
  const std::string& reason() const { return reason_; }
  uint32_t reboots() const { return reboots_; }
  uint64_t uptime_ns() const;

  Result<void> PowerOn();
  /// In place of PowerOn: Paused as it was when it was saved. `stream`: see SaveUnits; the memory
  /// has been restored, or comes as it is touched.
  Result<void> PowerOnFrom(std::string_view stream);
  Result<void> Pause();
  Result<void> Resume();
  /// Of a Paused machine whose state is being put into files: it does not change any more, unless
  /// that is given up and it is Paused again.
  Result<void> BeginSaving();
  Result<void> GiveUpSaving();
  /// Of one that is being saved, when all of it is in files: what is left to be done is TurnOff.
  Result<void> MarkSaved();
  /// Ends the machine at once, as pulling the plug does; Off when it returns.
  Result<void> TurnOff(Code code, std::string reason);

  /// The units' state; Paused alone. RAM is not in it.
  Result<std::string> SaveUnits();
  /// Checks the whole stream before the first unit is touched.
  Result<void> RestoreUnits(std::string_view stream);
  /// Save, reset and restore in place, RAM included; a running guest must not notice. Running or
  /// Paused.
  Result<void> Pulse();

  /// From any thread: the guest switched itself off (soft-off), or wants a reset.
  void RequestPowerOff(std::string reason);
  void OnResetRequest(std::string_view why) override;

  // ExitHandler, on vCPU threads
  uint64_t PortRead(uint16_t port, unsigned size) override { return ports_.Read(port, size); }
  void PortWrite(uint16_t port, unsigned size, uint64_t value) override {
    ports_.Write(port, size, value);
  }
  uint64_t MmioRead(uint64_t gpa, unsigned size) override { return mmio_.Read(gpa, size); }
  void MmioWrite(uint64_t gpa, unsigned size, uint64_t value) override {
    mmio_.Write(gpa, size, value);
  }
  void OnGuestCrash(const GuestCrashReport& report) override;
  void OnVcpuFailure(uint32_t index, Error error) override;

  void VisitCounters(const CounterVisitor& visit) const;

 private:
  void ChangeState(MachineState state, std::string reason = "");
  Result<void> LoadBoot();
  void StartUnits();
  void StopUnits();
  void ResetUnits();
  void Reboot(const std::string& why);

  Loop& loop_;
  GuestMemory& memory_;
  std::unique_ptr<Vm> vm_;
  Callbacks callbacks_;
  IoBus ports_{"port"};
  IoBus mmio_{"MMIO"};
  std::vector<StateUnit*> units_;
  std::function<Result<BootState>()> boot_loader_;

  MachineState state_ = MachineState::kOff;
  std::string reason_;
  uint32_t reboots_ = 0;
  uint64_t power_on_ns_ = 0;
  std::atomic<bool> reset_posted_{false};
  VcpuThreads threads_;  // last: its threads use all of the above
};

}  // namespace kvmbus::vmm
