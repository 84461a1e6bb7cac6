// SPDX-License-Identifier: Apache-2.0
/// \file
/// Bits of Hyper-V's CPUID leaves and numbers of its MSRs. Reference: TLFS, "Feature and Interface
/// Discovery"; names without the HV_ prefix.
#pragma once

#include <cstdint>

namespace kvmbus::kvm {

// 0x40000003 EAX: partition privileges to MSRs.
inline constexpr uint32_t kAccessVpRunTime = 1u << 0;
inline constexpr uint32_t kAccessPartitionReferenceCounter = 1u << 1;
inline constexpr uint32_t kAccessSynicRegs = 1u << 2;
inline constexpr uint32_t kAccessSyntheticTimerRegs = 1u << 3;
inline constexpr uint32_t kAccessIntrCtrlRegs = 1u << 4;
inline constexpr uint32_t kAccessHypercallMsrs = 1u << 5;
inline constexpr uint32_t kAccessVpIndex = 1u << 6;
inline constexpr uint32_t kAccessResetReg = 1u << 7;
inline constexpr uint32_t kAccessPartitionReferenceTsc = 1u << 9;
inline constexpr uint32_t kAccessFrequencyRegs = 1u << 11;
// 0x40000003 EBX.
inline constexpr uint32_t kPostMessages = 1u << 4;
inline constexpr uint32_t kSignalEvents = 1u << 5;
// 0x40000003 EDX.
inline constexpr uint32_t kXmmRegistersForFastHypercall = 1u << 4;
inline constexpr uint32_t kFrequencyRegsAvailable = 1u << 8;
inline constexpr uint32_t kGuestCrashRegsAvailable = 1u << 10;
inline constexpr uint32_t kDirectSyntheticTimers = 1u << 19;
// 0x40000004 EAX: recommendations.
inline constexpr uint32_t kUseHypercallForRemoteFlush = 1u << 2;
inline constexpr uint32_t kRelaxedTiming = 1u << 5;
inline constexpr uint32_t kDeprecateAutoEoi = 1u << 9;
inline constexpr uint32_t kUseHypercallForIpi = 1u << 10;
inline constexpr uint32_t kUseExProcessorMasks = 1u << 11;

inline constexpr uint32_t kMsrGuestOsId = 0x40000000;
inline constexpr uint32_t kMsrHypercall = 0x40000001;
inline constexpr uint32_t kMsrVpIndex = 0x40000002;
inline constexpr uint32_t kMsrReferenceTsc = 0x40000021;
inline constexpr uint32_t kMsrVpAssistPage = 0x40000073;
inline constexpr uint32_t kMsrScontrol = 0x40000080;
inline constexpr uint32_t kMsrSiefp = 0x40000082;
inline constexpr uint32_t kMsrSimp = 0x40000083;
inline constexpr uint32_t kMsrSint0 = 0x40000090;
inline constexpr uint32_t kMsrStimer0Config = 0x400000b0;
inline constexpr uint32_t kMsrStimer0Count = 0x400000b1;
inline constexpr uint32_t kMsrCrashP0 = 0x40000100;
inline constexpr uint32_t kMsrCrashCtl = 0x40000105;
inline constexpr uint32_t kMsrReenlightenmentControl = 0x40000106;
inline constexpr uint32_t kMsrTscEmulationControl = 0x40000107;
inline constexpr uint32_t kMsrTscEmulationStatus = 0x40000108;

inline constexpr unsigned kSintCount = 16;
inline constexpr unsigned kStimerCount = 4;

inline constexpr uint64_t kCrashNotify = uint64_t{1} << 63;
inline constexpr uint64_t kCrashMessage = uint64_t{1} << 62;

}  // namespace kvmbus::kvm
