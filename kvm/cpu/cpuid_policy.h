// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a guest reads with CPUID: the host's processor as KVM can give it, one socket of N cores,
/// and Hyper-V as the only hypervisor (a KVM signature would win over it in Linux, and VMBus would
/// never load).
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <span>
#include <vector>

#include "vmm/result/result.h"

namespace kvmbus::kvm {

struct CpuidInputs {
  std::vector<kvm_cpuid_entry2> supported;     ///< KVM_GET_SUPPORTED_CPUID
  std::vector<kvm_cpuid_entry2> hv_supported;  ///< KVM_GET_SUPPORTED_HV_CPUID
  uint32_t vcpu_count = 1;
  bool tsc_deadline_timer = false;  ///< KVM_CAP_TSC_DEADLINE_TIMER
};

/// Refuses a KVM that lacks what VMBus cannot do without (SynIC, hypercalls, VP index):
/// kFailedPrecondition.
vmm::Result<void> CheckHypervSupport(std::span<const kvm_cpuid_entry2> hv_supported);

/// The leaves of one vCPU; its APIC id is its index. Pure.
std::vector<kvm_cpuid_entry2> MakeGuestCpuid(const CpuidInputs& inputs, uint32_t vcpu_index);

}  // namespace kvmbus::kvm
