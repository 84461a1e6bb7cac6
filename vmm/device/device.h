// SPDX-License-Identifier: Apache-2.0
/// \file
/// The device contract. A device has four groups of fields: configuration, collaborators,
/// book-keeping, state. State is a plain struct: Reset assigns a fresh one and recomputes outputs,
/// Restore validates, assigns and runs the same recompute. tests/fakes/device_contract.h checks
/// this for the UART, the RTC, ACPI power and the backup service.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "vmm/os/counter.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

/// One named unit of a machine's life cycle and of its saved state. The machine starts units in the
/// order of registration and stops them in reverse; Reset, Save and Restore come only while
/// stopped. All calls come from the main thread.
class StateUnit {
 public:
  virtual ~StateUnit() = default;

  /// Stable, unique in the machine, part of the saved state: "rtc", "vmbus", "scsi/0".
  virtual std::string_view unit_name() const = 0;
  /// Of the protobuf message that Save writes; raised when its meaning changes.
  virtual uint32_t schema_version() const { return 1; }
  /// The oldest reader's schema version that can still make sense of it.
  virtual uint32_t minimum_reader() const { return 1; }

  /// Idempotent. From Start to Stop the unit may run, write guest memory, raise interrupts.
  virtual void Start() {}
  /// Idempotent. When it returns nothing of the unit runs and guest memory is not written any more.
  virtual void Stop() {}
  /// As after power-on.
  virtual void Reset() = 0;
  /// The state as one serialized protobuf message. Saving what Restore took gives equal bytes.
  virtual Result<std::string> Save() = 0;
  /// Saved state is hostile input: everything is checked before anything is assigned.
  virtual Result<void> Restore(uint32_t schema_version, std::string_view state) = 0;

  virtual void VisitCounters(const CounterVisitor&) const {}
};

/// Accesses that a bus dispatches. `offset` counts from the start of the registered range, `size`
/// is 1, 2, 4 or 8, the value is little-endian. The bus holds the device's lock; the device takes
/// none.
class IoHandler {
 public:
  virtual ~IoHandler() = default;
  virtual uint64_t IoRead(uint64_t offset, unsigned size) = 0;
  virtual void IoWrite(uint64_t offset, unsigned size, uint64_t value) = 0;
};

/// One interrupt input of the interrupt controllers. Any thread.
class InterruptLine {
 public:
  virtual ~InterruptLine() = default;
  virtual void Set(bool asserted) = 0;
  /// An edge: asserted and released.
  void Pulse() {
    Set(true);
    Set(false);
  }
};

}  // namespace kvmbus::vmm
