// SPDX-License-Identifier: Apache-2.0
// Saving and restoring a virtual processor; the order of restoring is api.rst's and the TLFS's.
#include <algorithm>
#include <cstring>

#include "kvm/cpu/hyperv_leaves.h"
#include "kvm/vcpu.h"

namespace kvmbus::kvm {
namespace {

using vmm::Code;
using vmm::Result;

constexpr uint32_t kMsrTsc = 0x10;
constexpr uint32_t kMsrTscDeadline = 0x6e0;

/// Hyper-V's per-VP and partition MSRs in the order in which they must be written: the guest OS id
/// before the hypercall page, a timer's count before its configuration. KVM's index list has only
/// markers of them.
std::vector<uint32_t> HypervMsrs() {
  std::vector<uint32_t> list = {kMsrGuestOsId,
                                kMsrHypercall,
                                kMsrReferenceTsc,
                                kMsrReenlightenmentControl,
                                kMsrTscEmulationControl,
                                kMsrTscEmulationStatus,
                                kMsrVpAssistPage,
                                kMsrScontrol,
                                kMsrSiefp,
                                kMsrSimp};
  for (uint32_t i = 0; i < kSintCount; ++i) list.push_back(kMsrSint0 + i);
  for (uint32_t i = 0; i < kStimerCount; ++i) {
    list.push_back(kMsrStimer0Count + 2 * i);
    list.push_back(kMsrStimer0Config + 2 * i);
  }
  return list;
}

/// Written after the local APIC: they arm timers of it.
bool IsLate(uint32_t msr) {
  return msr == kMsrTscDeadline ||
         (msr >= kMsrStimer0Config && msr < kMsrStimer0Config + 2 * kStimerCount);
}

}  // namespace

Result<void> KvmVcpu::SaveMsrs(state::Vcpu* state) const {
  std::vector<uint32_t> list = shared_.msrs;
  const std::vector<uint32_t> hyperv = HypervMsrs();
  list.insert(list.end(), hyperv.begin(), hyperv.end());
  for (const kvm_msr_entry& entry : TRY(fd_.GetMsrs(list))) {
    state::Msr* msr = state->add_msrs();
    msr->set_index(entry.index);
    msr->set_value(entry.data);
  }
  const uint32_t tsc[] = {kMsrTsc};
  const auto value = TRY(fd_.GetMsrs(tsc));
  if (value.empty()) return vmm::Error(Code::kInternal, "KVM does not give the time stamp counter");
  state->set_tsc(value.front().data);
  return {};
}

Result<void> KvmVcpu::Save(state::Vcpu* state) const {
  state->set_mp_state(TRY(fd_.Get<kvm_mp_state>(KVM_GET_MP_STATE, "KVM_GET_MP_STATE"))
                          .mp_state);  // first: it settles pending INIT and SIPI
  state->set_regs(ToBytes(TRY(fd_.Get<kvm_regs>(KVM_GET_REGS, "KVM_GET_REGS"))));
  state->set_sregs(ToBytes(TRY(fd_.Get<kvm_sregs>(KVM_GET_SREGS, "KVM_GET_SREGS"))));
  state->set_xsave(TRY(fd_.GetXsave(shared_.xsave_bytes)));
  state->set_xcrs(ToBytes(TRY(fd_.Get<kvm_xcrs>(KVM_GET_XCRS, "KVM_GET_XCRS"))));
  state->set_debugregs(
      ToBytes(TRY(fd_.Get<kvm_debugregs>(KVM_GET_DEBUGREGS, "KVM_GET_DEBUGREGS"))));
  TRY_VOID(SaveMsrs(state));
  state->set_lapic(ToBytes(TRY(fd_.Get<kvm_lapic_state>(KVM_GET_LAPIC, "KVM_GET_LAPIC"))));
  state->set_events(
      ToBytes(TRY(fd_.Get<kvm_vcpu_events>(KVM_GET_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS"))));
  shared_.synic->Save(index_, state->mutable_synic());
  return {};
}

Result<void> KvmVcpu::RestoreMsrs(const state::Vcpu& state, bool late) {
  std::vector<kvm_msr_entry> entries;
  for (const state::Msr& msr : state.msrs()) {
    if (IsLate(msr.index()) == late) entries.push_back({msr.index(), 0, msr.value()});
  }
  return fd_.SetMsrs(entries);
}

Result<void> KvmVcpu::Restore(const VcpuRecords& records, const state::Vcpu& state, bool with_tsc) {
  if (with_tsc) {
    const kvm_msr_entry tsc[] = {{kMsrTsc, 0, state.tsc()}};
    TRY_VOID(fd_.SetMsrs(tsc));
  }
  kvm_mp_state mp_state = {state.mp_state()};
  TRY_VOID(fd_.Set(KVM_SET_MP_STATE, "KVM_SET_MP_STATE", mp_state));
  TRY_VOID(fd_.Set(KVM_SET_SREGS, "KVM_SET_SREGS", records.sregs));
  // A processor without XSAVE has none, and KVM refuses to set none.
  if (records.xcrs.nr_xcrs != 0) TRY_VOID(fd_.Set(KVM_SET_XCRS, "KVM_SET_XCRS", records.xcrs));
  TRY_VOID(fd_.SetXsave(state.xsave()));
  TRY_VOID(fd_.Set(KVM_SET_REGS, "KVM_SET_REGS", records.regs));
  TRY_VOID(fd_.Set(KVM_SET_DEBUGREGS, "KVM_SET_DEBUGREGS", records.debugregs));
  TRY_VOID(RestoreMsrs(state, false));
  TRY_VOID(fd_.Set(KVM_SET_LAPIC, "KVM_SET_LAPIC", records.lapic));
  TRY_VOID(RestoreMsrs(state, true));
  TRY_VOID(fd_.Set(KVM_SET_VCPU_EVENTS, "KVM_SET_VCPU_EVENTS", records.events));
  shared_.synic->Restore(index_, state.synic());
  return {};
}

std::vector<uint32_t> KvmVcpu::RefusedMsrs() const {
  std::vector<uint32_t> refused;
  const auto entries = fd_.GetMsrs(shared_.msrs);
  if (!entries.ok()) return shared_.msrs;
  for (const uint32_t msr : shared_.msrs) {
    const auto at = std::find_if(entries->begin(), entries->end(),
                                 [msr](const kvm_msr_entry& e) { return e.index == msr; });
    if (at == entries->end() || !fd_.SetMsrs({&*at, 1}).ok()) refused.push_back(msr);
  }
  return refused;
}

}  // namespace kvmbus::kvm
