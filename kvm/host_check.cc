// SPDX-License-Identifier: Apache-2.0
#include "kvm/host_check.h"

#include <array>

#include "kvm/cpu/cpuid_policy.h"
#include "kvm/uapi/kvm_fds.h"
#include "vmm/os/file.h"

namespace kvmbus::kvm {
namespace {

using vmm::HostRequirement;

constexpr std::string_view kSlatName = "second-level address translation";

struct CapabilityNeed {
  int capability;
  const char* name;
};

constexpr std::array kCapabilities = {
    CapabilityNeed{KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
    CapabilityNeed{KVM_CAP_PIT2, "KVM_CAP_PIT2"},
    CapabilityNeed{KVM_CAP_IRQFD_RESAMPLE, "KVM_CAP_IRQFD_RESAMPLE"},
    CapabilityNeed{KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
    CapabilityNeed{KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"},
    CapabilityNeed{KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR"},
    CapabilityNeed{KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER"},
    CapabilityNeed{KVM_CAP_HYPERV_SYNIC2, "KVM_CAP_HYPERV_SYNIC2"},
    CapabilityNeed{KVM_CAP_HYPERV_VP_INDEX, "KVM_CAP_HYPERV_VP_INDEX"},
    CapabilityNeed{KVM_CAP_HYPERV_EVENTFD, "KVM_CAP_HYPERV_EVENTFD"},
    CapabilityNeed{KVM_CAP_HYPERV_ENFORCE_CPUID, "KVM_CAP_HYPERV_ENFORCE_CPUID"},
    CapabilityNeed{KVM_CAP_SYS_HYPERV_CPUID, "KVM_CAP_SYS_HYPERV_CPUID"},
};

HostRequirement CheckSlat() {
  HostRequirement need{
      std::string(kSlatName),        "", "kvm_intel.ept=Y or kvm_amd.npt=Y", false, "",
      vmm::Code::kFailedPrecondition};
  for (const auto& [module, parameter] :
       {std::pair{"kvm_intel", "ept"}, std::pair{"kvm_amd", "npt"}}) {
    const auto value =
        vmm::ReadWholeFile(fmt::format("/sys/module/{}/parameters/{}", module, parameter), 16);
    if (!value.ok() || value->empty()) continue;
    need.found += fmt::format("{}{}.{}={}", need.found.empty() ? "" : ", ", module, parameter,
                              value->front());
    need.ok = need.ok || value->front() == 'Y' || value->front() == '1';
  }
  if (need.found.empty()) need.found = "neither kvm_intel nor kvm_amd is loaded";
  if (!need.ok)
    need.remedy =
        "enable EPT (Intel) or NPT (AMD) in the firmware's setup and reload the module with ept=1 "
        "or npt=1; a host that is "
        "itself a virtual machine needs nested paging from its own hypervisor";
  return need;
}

}  // namespace

std::vector<HostRequirement> CheckHost() {
  std::vector<HostRequirement> needs;
  auto system = SystemFd::Open();
  needs.push_back({"/dev/kvm", system.ok() ? "usable" : "unusable", "usable", system.ok(),
                   system.ok() ? "" : system.error().message(),
                   system.ok() ? vmm::Code::kOk : system.error().code()});
  needs.push_back(CheckSlat());
  if (!system.ok()) return needs;
  for (const CapabilityNeed& need : kCapabilities) {
    const bool present = system->CheckExtension(need.capability) > 0;
    needs.push_back({need.name, present ? "present" : "absent", "present", present,
                     present ? "" : "run Debian 12's kernel or a newer one with CONFIG_KVM_HYPERV",
                     vmm::Code::kFailedPrecondition});
  }
  const auto leaves = system->SupportedHvCpuid();
  const auto usable = leaves.ok() ? CheckHypervSupport(*leaves) : vmm::Result<void>(leaves.error());
  needs.push_back({"Hyper-V emulation", usable.ok() ? "complete" : "incomplete", "complete",
                   usable.ok(), usable.ok() ? "" : usable.error().message(),
                   vmm::Code::kFailedPrecondition});
  return needs;
}

vmm::Result<void> RequireHost(bool without_slat) {
  for (const HostRequirement& need : CheckHost()) {
    if (need.ok || (without_slat && need.name == kSlatName)) continue;
    return vmm::MakeError(need.code, "{}: found {}, needed {}; {}", need.name, need.found,
                          need.needed, need.remedy);
  }
  return {};
}

}  // namespace kvmbus::kvm
