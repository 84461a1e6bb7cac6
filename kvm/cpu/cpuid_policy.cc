// SPDX-License-Identifier: Apache-2.0
#include "kvm/cpu/cpuid_policy.h"

#include <algorithm>
#include <bit>

#include "kvm/cpu/hyperv_leaves.h"

namespace kvmbus::kvm {
namespace {

using vmm::Code;

constexpr uint32_t kMandatory = kAccessPartitionReferenceCounter | kAccessSynicRegs |
                                kAccessSyntheticTimerRegs | kAccessHypercallMsrs | kAccessVpIndex;
constexpr uint32_t kWantedPrivileges = kMandatory | kAccessVpRunTime | kAccessIntrCtrlRegs |
                                       kAccessResetReg | kAccessPartitionReferenceTsc |
                                       kAccessFrequencyRegs;
constexpr uint32_t kWantedFeatures =
    kXmmRegistersForFastHypercall | kFrequencyRegsAvailable | kDirectSyntheticTimers;

const kvm_cpuid_entry2* Find(std::span<const kvm_cpuid_entry2> entries, uint32_t function) {
  const auto at = std::find_if(
      entries.begin(), entries.end(),
      [function](const kvm_cpuid_entry2& entry) { return entry.function == function; });
  return at == entries.end() ? nullptr : &*at;
}

kvm_cpuid_entry2 Leaf(uint32_t function, uint32_t eax, uint32_t ebx, uint32_t ecx, uint32_t edx) {
  kvm_cpuid_entry2 entry = {};
  entry.function = function;
  entry.eax = eax;
  entry.ebx = ebx;
  entry.ecx = ecx;
  entry.edx = edx;
  return entry;
}

kvm_cpuid_entry2 SubLeaf(uint32_t function, uint32_t index, uint32_t eax, uint32_t ebx,
                         uint32_t ecx, uint32_t edx) {
  kvm_cpuid_entry2 entry = Leaf(function, eax, ebx, ecx, edx);
  entry.index = index;
  entry.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
  return entry;
}

/// Bits of an APIC id that number the cores of the socket.
uint32_t CoreBits(uint32_t vcpu_count) {
  return static_cast<uint32_t>(std::bit_width(vcpu_count - 1));
}

/// Leaves 4 and 0x8000001D: first and second level caches belong to a core, the third to the
/// socket.
void ShareCaches(kvm_cpuid_entry2& entry, uint32_t vcpu_count) {
  const uint32_t level = entry.eax >> 5 & 7;
  const uint32_t sharing = level >= 3 ? (1u << CoreBits(vcpu_count)) - 1 : 0;
  entry.eax = (entry.eax & ~(0xfffu << 14)) | std::min(sharing, 0xfffu) << 14;
  if (entry.function == 4 && (entry.eax & 0x1f) != 0)
    entry.eax = (entry.eax & 0x03ffffff) | std::min((1u << CoreBits(vcpu_count)) - 1, 63u) << 26;
}

/// Changes one leaf of the host's; false drops it.
bool AdaptLeaf(kvm_cpuid_entry2& entry, const CpuidInputs& inputs, uint32_t apic_id) {
  const uint32_t count = inputs.vcpu_count;
  if (entry.function >= 0x40000000 && entry.function <= 0x4fffffff) return false;
  switch (entry.function) {
    case 1:
      entry.ebx = (entry.ebx & 0xffff) | std::min(1u << CoreBits(count), 255u) << 16 |
                  (apic_id & 0xff) << 24;
      entry.ecx &= ~(1u << 5);  // VMX: nesting under VMBus is not offered
      entry.ecx |= 1u << 31;    // a hypervisor is present
      if (inputs.tsc_deadline_timer) entry.ecx |= 1u << 24;
      if (count > 1)
        entry.edx |= 1u << 28;
      else
        entry.edx &= ~(1u << 28);
      return true;
    case 4:
    case 0x8000001d:
      ShareCaches(entry, count);
      return true;
    case 0xa:
      entry.eax = entry.ebx = entry.ecx = entry.edx = 0;
      return true;  // no virtual PMU
    case 0xb:
    case 0x1f:
      return false;  // made anew below
    case 0x80000001:
      entry.ecx &= ~(1u << 2);  // SVM
      return true;
    case 0x80000008:
      entry.ecx = (entry.ecx & 0xffff0000) | CoreBits(count) << 12 | ((count - 1) & 0xff);
      return true;
    case 0x8000000a:
      entry.eax = entry.ebx = entry.ecx = entry.edx = 0;
      return true;
    case 0x8000001e:
      entry.eax = apic_id;
      entry.ebx = apic_id & 0xff;
      entry.ecx = 0;
      return true;
    default:
      return true;
  }
}

void AppendTopology(std::vector<kvm_cpuid_entry2>& leaves, uint32_t vcpu_count, uint32_t apic_id) {
  leaves.push_back(SubLeaf(0xb, 0, 0, 1, 1u << 8, apic_id));  // one thread a core
  leaves.push_back(SubLeaf(0xb, 1, CoreBits(vcpu_count), vcpu_count, 2u << 8 | 1,
                           apic_id));  // cores of the socket
  leaves.push_back(SubLeaf(0xb, 2, 0, 0, 2, apic_id));
}

void AppendHyperv(std::vector<kvm_cpuid_entry2>& leaves, const CpuidInputs& inputs) {
  const kvm_cpuid_entry2* features = Find(inputs.hv_supported, 0x40000003);
  const kvm_cpuid_entry2* hints = Find(inputs.hv_supported, 0x40000004);
  const kvm_cpuid_entry2* limits = Find(inputs.hv_supported, 0x40000005);
  const uint32_t privileges = features == nullptr ? 0 : features->eax & kWantedPrivileges;
  const uint32_t messaging =
      features == nullptr ? 0 : features->ebx & (kPostMessages | kSignalEvents);
  // The crash registers are the VMM's own (kvm/vcpu.cc): KVM would not let the guest send its
  // message.
  const uint32_t available =
      (features == nullptr ? 0 : features->edx & kWantedFeatures) | kGuestCrashRegsAvailable;
  constexpr uint32_t kWantedHints =
      kUseHypercallForRemoteFlush | kUseHypercallForIpi | kUseExProcessorMasks;
  const uint32_t recommended =
      (hints == nullptr ? 0 : hints->eax & kWantedHints) | kRelaxedTiming | kDeprecateAutoEoi;
  constexpr uint32_t kSpinRetries = 0xfff;
  leaves.push_back(
      Leaf(0x40000000, 0x40000006, 0x7263694d, 0x666f736f, 0x76482074));  // "Microsoft Hv"
  leaves.push_back(Leaf(0x40000001, 0x31237648, 0, 0, 0));                // "Hv#1"
  leaves.push_back(Leaf(0x40000002, 17763, 10u << 16, 0, 0));             // Windows Server 2019's
  leaves.push_back(Leaf(0x40000003, privileges, messaging, 0, available));
  leaves.push_back(Leaf(0x40000004, recommended, kSpinRetries, 0, 0));
  leaves.push_back(Leaf(0x40000005, limits == nullptr ? 64 : limits->eax,
                        limits == nullptr ? 64 : limits->ebx, 0, 0));
  leaves.push_back(Leaf(0x40000006, 0, 0, 0, 0));
}

}  // namespace

vmm::Result<void> CheckHypervSupport(std::span<const kvm_cpuid_entry2> hv_supported) {
  const kvm_cpuid_entry2* features = Find(hv_supported, 0x40000003);
  const uint32_t have = features == nullptr ? 0 : features->eax;
  if ((have & kMandatory) == kMandatory) return {};
  return vmm::MakeError(
      Code::kFailedPrecondition,
      "the kernel's KVM lacks Hyper-V emulation (CPUID 0x40000003 EAX is {:#x}, needed are {:#x}): "
      "run a kernel with CONFIG_KVM_HYPERV",
      have, kMandatory);
}

std::vector<kvm_cpuid_entry2> MakeGuestCpuid(const CpuidInputs& inputs, uint32_t vcpu_index) {
  std::vector<kvm_cpuid_entry2> leaves;
  for (kvm_cpuid_entry2 entry : inputs.supported) {
    if (AdaptLeaf(entry, inputs, vcpu_index)) leaves.push_back(entry);
  }
  const kvm_cpuid_entry2* basic = Find(leaves, 0);
  if (basic != nullptr && basic->eax >= 0xb) AppendTopology(leaves, inputs.vcpu_count, vcpu_index);
  AppendHyperv(leaves, inputs);
  return leaves;
}

}  // namespace kvmbus::kvm
