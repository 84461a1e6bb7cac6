// SPDX-License-Identifier: Apache-2.0
#include "kvm/cpu/cpuid_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>

#include "kvm/cpu/hyperv_leaves.h"

namespace kvmbus::kvm {
namespace {

kvm_cpuid_entry2 Leaf(uint32_t function, uint32_t eax, uint32_t ebx, uint32_t ecx, uint32_t edx) {
  kvm_cpuid_entry2 entry = {};
  entry.function = function;
  entry.eax = eax;
  entry.ebx = ebx;
  entry.ecx = ecx;
  entry.edx = edx;
  return entry;
}

CpuidInputs Host() {
  CpuidInputs inputs;
  inputs.vcpu_count = 6;
  inputs.supported = {
      Leaf(0, 0x1f, 0, 0, 0),       Leaf(1, 0, 0xff040800, ~0u, 0),
      Leaf(0xb, 9, 9, 9, 9),        Leaf(0x40000000, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d),
      Leaf(0x40000100, 1, 2, 3, 4), Leaf(0x80000001, 0, 0, ~0u, 0),
      Leaf(0x8000000a, 1, 2, 3, 4)};
  inputs.hv_supported = {Leaf(0x40000000, 0x40000082, 1, 2, 3),
                         Leaf(0x40000003, ~0u, ~0u, ~0u, ~0u), Leaf(0x40000004, ~0u, 0xfff, 0, 0),
                         Leaf(0x40000005, 1024, 64, 0, 0), Leaf(0x4000000a, 1, 0, 0, 0)};
  return inputs;
}

std::optional<kvm_cpuid_entry2> Get(const std::vector<kvm_cpuid_entry2>& leaves, uint32_t function,
                                    uint32_t index = 0) {
  for (const auto& entry : leaves) {
    if (entry.function == function && entry.index == index) return entry;
  }
  return std::nullopt;
}

TEST(CpuidPolicyTest, HypervIsTheOnlyHypervisor) {
  const auto leaves = MakeGuestCpuid(Host(), 0);
  const auto signature = Get(leaves, 0x40000000);
  ASSERT_TRUE(signature);
  EXPECT_EQ(signature->ebx, 0x7263694du);
  EXPECT_EQ(signature->ecx, 0x666f736fu);
  EXPECT_EQ(signature->edx, 0x76482074u);
  EXPECT_GE(signature->eax, 0x40000005u);
  EXPECT_EQ(Get(leaves, 0x40000001)->eax, 0x31237648u);
  EXPECT_FALSE(Get(leaves, 0x40000100));
  EXPECT_FALSE(Get(leaves, 0x4000000a)) << "nesting leaf makes guests start their own hypervisor";
  EXPECT_EQ(
      std::count_if(leaves.begin(), leaves.end(), [](auto& e) { return e.function == 0x40000000; }),
      1);
}

TEST(CpuidPolicyTest, PrivilegesAreWhatThePolicyNames) {
  const auto features = *Get(MakeGuestCpuid(Host(), 0), 0x40000003);
  EXPECT_EQ(features.eax, 0xaffu);  // no guest idle, no invariant TSC, no debug
  EXPECT_EQ(features.ebx, kPostMessages | kSignalEvents)
      << "bits 0 and 12 would make Linux a root partition";
  EXPECT_EQ(features.edx, kXmmRegistersForFastHypercall | kFrequencyRegsAvailable |
                              kGuestCrashRegsAvailable | kDirectSyntheticTimers);
  const auto hints = *Get(MakeGuestCpuid(Host(), 0), 0x40000004);
  EXPECT_TRUE(hints.eax & kDeprecateAutoEoi);
  EXPECT_FALSE(hints.eax & 1u << 3) << "APIC by MSR costs exits";
  EXPECT_FALSE(hints.eax & 1u << 12) << "nested";
}

TEST(CpuidPolicyTest, RemoteFlushIsRecommended) {
  EXPECT_TRUE(Get(MakeGuestCpuid(Host(), 0), 0x40000004)->eax & kUseHypercallForRemoteFlush);
}

TEST(CpuidPolicyTest, TopologyIsOneSocketOfCores) {
  const auto leaves = MakeGuestCpuid(Host(), 5);
  EXPECT_EQ(Get(leaves, 1)->ebx >> 24, 5u);
  EXPECT_EQ(Get(leaves, 1)->ebx >> 16 & 0xff, 8u);
  EXPECT_EQ(Get(leaves, 0xb, 0)->edx, 5u);
  EXPECT_EQ(Get(leaves, 0xb, 1)->eax, 3u);
  EXPECT_EQ(Get(leaves, 0xb, 1)->ebx, 6u);
}

TEST(CpuidPolicyTest, NestedVirtualizationIsHidden) {
  const auto leaves = MakeGuestCpuid(Host(), 0);
  EXPECT_FALSE(Get(leaves, 1)->ecx & 1u << 5);
  EXPECT_TRUE(Get(leaves, 1)->ecx & 1u << 31);
  EXPECT_FALSE(Get(leaves, 0x80000001)->ecx & 1u << 2);
  EXPECT_EQ(Get(leaves, 0x8000000a)->eax, 0u);
}

TEST(CpuidPolicyTest, KvmWithoutHypervEmulationIsRefused) {
  EXPECT_TRUE(CheckHypervSupport(Host().hv_supported).ok());
  const std::vector<kvm_cpuid_entry2> none = {Leaf(0x40000003, kAccessHypercallMsrs, 0, 0, 0)};
  const auto refused = CheckHypervSupport(none);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), vmm::Code::kFailedPrecondition);
}

}  // namespace
}  // namespace kvmbus::kvm
