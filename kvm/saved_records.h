// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a saved machine's processors and interrupt controllers are, in KVM's own structs, checked
/// for all of the machine before the first of them goes to KVM.
#pragma once

#include <linux/kvm.h>

#include <array>
#include <string>
#include <vector>

#include "state/hypervisor.pb.h"
#include "vmm/memory/guest_memory.h"

namespace kvmbus::kvm {

struct VcpuRecords {
  kvm_regs regs;
  kvm_sregs sregs;
  kvm_xcrs xcrs;
  kvm_debugregs debugregs;
  kvm_lapic_state lapic;
  kvm_vcpu_events events;
};

struct VmRecords {
  kvm_irqchip pic_master, pic_slave, ioapic;
  kvm_pit_state2 pit;
  std::array<uint64_t, 5> crash_parameters;
  std::vector<VcpuRecords> vcpus;
};

/// Of a machine with that memory and that many processors, whose XSAVE areas have `xsave_bytes`.
/// kDataLoss: what is there is no such state; kFailedPrecondition: it is another machine's.
vmm::Result<VmRecords> ReadRecords(const state::Hypervisor& state, size_t vcpus, size_t xsave_bytes,
                                   const vmm::GuestMemory& memory);

/// How a struct of KVM's is kept.
template <typename T>
std::string ToBytes(const T& value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(T));
}

}  // namespace kvmbus::kvm
