// SPDX-License-Identifier: Apache-2.0
#include "kvm/saved_records.h"

#include <algorithm>
#include <cstring>

#include "kvm/hyperv/synic.h"

namespace kvmbus::kvm {
namespace {

using vmm::Code;
using vmm::Result;

constexpr int kMaxMsrs = 256;  // KVM_SET_MSRS takes no more

template <typename T>
Result<T> FromBytes(const std::string& bytes, const char* what) {
  if (bytes.size() != sizeof(T))
    return vmm::MakeError(Code::kDataLoss, "saved {} has {} bytes, expected are {}", what,
                          bytes.size(), sizeof(T));
  T value;
  std::memcpy(&value, bytes.data(), sizeof(T));
  return value;
}

bool IsOverlay(uint64_t gpa, const std::string& beneath, const vmm::GuestMemory& memory) {
  if (gpa == 0) return beneath.empty();
  return gpa % vmm::kPageSize == 0 && beneath.size() == vmm::kPageSize &&
         memory.Contains(gpa, vmm::kPageSize);
}

Result<void> CheckSynic(const state::SynicVp& state, const vmm::GuestMemory& memory) {
  if (!IsOverlay(state.simp_gpa(), state.simp_beneath(), memory) ||
      !IsOverlay(state.siefp_gpa(), state.siefp_beneath(), memory) ||
      static_cast<size_t>(state.queued_size()) > KvmSynic::kQueueLimit)
    return vmm::Error(Code::kDataLoss, "its SynIC state is not valid");
  for (const auto& message : state.queued()) {
    if (message.payload().size() > vmm::kHvMessagePayloadMax ||
        message.sint() != KvmSynic::kVmbusSint)
      return vmm::Error(Code::kDataLoss, "a queued SynIC message of it is not valid");
  }
  return {};
}

Result<VcpuRecords> ReadVcpu(const state::Vcpu& state, size_t xsave_bytes,
                             const vmm::GuestMemory& memory) {
  VcpuRecords records;
  records.regs = TRY(FromBytes<kvm_regs>(state.regs(), "registers"));
  records.sregs = TRY(FromBytes<kvm_sregs>(state.sregs(), "special registers"));
  records.xcrs = TRY(FromBytes<kvm_xcrs>(state.xcrs(), "extended control registers"));
  records.debugregs = TRY(FromBytes<kvm_debugregs>(state.debugregs(), "debug registers"));
  records.lapic = TRY(FromBytes<kvm_lapic_state>(state.lapic(), "local APIC"));
  records.events = TRY(FromBytes<kvm_vcpu_events>(state.events(), "pending events"));
  if (state.xsave().size() != xsave_bytes)
    return vmm::MakeError(Code::kDataLoss, "saved XSAVE area has {} bytes, expected are {}",
                          state.xsave().size(), xsave_bytes);
  if (state.msrs_size() > kMaxMsrs)
    return vmm::MakeError(Code::kDataLoss, "{} saved MSRs are too many", state.msrs_size());
  TRY_VOID(CheckSynic(state.synic(), memory));
  return records;
}

}  // namespace

Result<VmRecords> ReadRecords(const state::Hypervisor& state, size_t vcpus, size_t xsave_bytes,
                              const vmm::GuestMemory& memory) {
  if (static_cast<size_t>(state.vcpus_size()) != vcpus)
    return vmm::MakeError(Code::kFailedPrecondition,
                          "saved with {} virtual processors, this machine has {}",
                          state.vcpus_size(), vcpus);
  VmRecords records;
  if (static_cast<size_t>(state.crash_parameters_size()) != records.crash_parameters.size())
    return vmm::Error(Code::kDataLoss, "saved crash registers are damaged");
  std::ranges::copy(state.crash_parameters(), records.crash_parameters.begin());
  records.pic_master = TRY(FromBytes<kvm_irqchip>(state.pic_master(), "PIC"));
  records.pic_slave = TRY(FromBytes<kvm_irqchip>(state.pic_slave(), "PIC"));
  records.ioapic = TRY(FromBytes<kvm_irqchip>(state.ioapic(), "I/O APIC"));
  records.pit = TRY(FromBytes<kvm_pit_state2>(state.pit(), "PIT"));
  if (records.pic_master.chip_id != KVM_IRQCHIP_PIC_MASTER ||
      records.pic_slave.chip_id != KVM_IRQCHIP_PIC_SLAVE ||
      records.ioapic.chip_id != KVM_IRQCHIP_IOAPIC)
    return vmm::Error(Code::kDataLoss, "saved interrupt controllers are damaged");
  for (int i = 0; i < state.vcpus_size(); ++i)
    records.vcpus.push_back(
        TRY_CTX(ReadVcpu(state.vcpus(i), xsave_bytes, memory), "restoring vCPU {}", i));
  return records;
}

}  // namespace kvmbus::kvm
