// SPDX-License-Identifier: Apache-2.0
/// \file
/// The only KVM ioctls of the project: typed owners of the system, VM and vCPU descriptors.
/// Reference: Linux, Documentation/virt/kvm/api.rst; names follow the ioctls.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "vmm/os/fd.h"

namespace kvmbus::kvm {

/// sizeof(struct kvm_xsave) in C.
inline constexpr unsigned kXsaveBytes = 4096;

/// One call on a descriptor; EINTR is not retried. The error names the request.
vmm::Result<int> KvmIoctl(int fd, unsigned long request, const char* name, void* argument);
vmm::Result<int> KvmIoctl(int fd, unsigned long request, const char* name,
                          unsigned long argument = 0);

/// /dev/kvm.
class SystemFd {
 public:
  /// kUnimplemented (there is none) or kPermissionDenied with the remedy; kFailedPrecondition for
  /// an API version other than 12.
  static vmm::Result<SystemFd> Open();
  int CheckExtension(int capability) const;  ///< 0: absent
  vmm::Result<std::vector<kvm_cpuid_entry2>> SupportedCpuid() const;
  vmm::Result<std::vector<kvm_cpuid_entry2>> SupportedHvCpuid() const;
  vmm::Result<std::vector<uint32_t>> MsrIndexList() const;
  vmm::Result<size_t> VcpuMmapSize() const;
  vmm::Result<vmm::Fd> CreateVm() const;

 private:
  explicit SystemFd(vmm::Fd fd) : fd_(std::move(fd)) {}
  vmm::Fd fd_;
};

class VmFd {
 public:
  explicit VmFd(vmm::Fd fd) : fd_(std::move(fd)) {}

  int CheckExtension(int capability) const;
  vmm::Result<void> EnableCap(uint32_t capability, const char* name, uint64_t argument0 = 0) const;
  vmm::Result<void> SetTssAddr(uint64_t gpa) const;
  vmm::Result<void> SetIdentityMapAddr(uint64_t gpa) const;
  vmm::Result<void> CreateIrqchip() const;
  vmm::Result<void> CreatePit2() const;
  vmm::Result<vmm::Fd> CreateVcpu(uint32_t index) const;
  vmm::Result<void> SetUserMemoryRegion(const kvm_userspace_memory_region& region) const;
  /// One bit a page of the slot, 0 in words that it does not fill.
  vmm::Result<void> GetDirtyLog(uint32_t slot, std::span<uint64_t> bitmap) const;
  /// `first` and `pages` are multiples of 64.
  vmm::Result<void> ClearDirtyLog(uint32_t slot, uint64_t first, uint32_t pages,
                                  std::span<const uint64_t> bitmap) const;
  vmm::Result<void> SetGsiRouting(std::span<const kvm_irq_routing_entry> entries) const;
  vmm::Result<void> AssignIrqfd(const kvm_irqfd& irqfd) const;
  vmm::Result<void> AssignHypervEventfd(uint32_t connection_id, int event_fd, bool deassign) const;
  vmm::Result<void> IrqLine(uint32_t gsi, bool level) const;
  vmm::Result<void> SetMsrFilterDeny(uint32_t first_msr, uint32_t count) const;
  vmm::Result<kvm_clock_data> GetClock() const;
  vmm::Result<void> SetClock(const kvm_clock_data& clock) const;
  vmm::Result<kvm_irqchip> GetIrqchip(uint32_t chip) const;
  vmm::Result<void> SetIrqchip(const kvm_irqchip& chip) const;
  vmm::Result<kvm_pit_state2> GetPit2() const;
  vmm::Result<void> SetPit2(const kvm_pit_state2& pit) const;

 private:
  vmm::Fd fd_;
};

/// A vCPU descriptor with its shared kvm_run page.
class VcpuFd {
 public:
  static vmm::Result<VcpuFd> Create(const VmFd& vm, uint32_t index, size_t mmap_size);
  VcpuFd(VcpuFd&& other) noexcept;
  VcpuFd& operator=(VcpuFd&&) = delete;
  ~VcpuFd();

  kvm_run* run() const { return run_; }
  /// KVM_RUN: 0, or the errno (EINTR after a kick).
  int Run() const;

  vmm::Result<void> EnableCap(uint32_t capability, const char* name) const;
  vmm::Result<void> SetCpuid2(std::span<const kvm_cpuid_entry2> entries) const;
  vmm::Result<int> TscKhz() const;

  /// Fixed-size state: Get<kvm_regs>(KVM_GET_REGS, "KVM_GET_REGS").
  template <typename T>
  vmm::Result<T> Get(unsigned long request, const char* name) const {
    T value{};
    const auto done = KvmIoctl(fd_.get(), request, name, &value);
    if (!done.ok()) return done.error();
    return value;
  }
  template <typename T>
  vmm::Result<void> Set(unsigned long request, const char* name, const T& value) const {
    const auto done = KvmIoctl(fd_.get(), request, name, const_cast<T*>(&value));
    if (!done.ok()) return done.error();
    return {};
  }
  /// Values of `indices`; those that the host does not know are left out.
  vmm::Result<std::vector<kvm_msr_entry>> GetMsrs(std::span<const uint32_t> indices) const;
  /// Stops at the first that is refused and names it.
  vmm::Result<void> SetMsrs(std::span<const kvm_msr_entry> entries) const;
  vmm::Result<std::string> GetXsave(size_t bytes) const;
  vmm::Result<void> SetXsave(const std::string& bytes) const;

 private:
  VcpuFd(vmm::Fd fd, kvm_run* run, size_t size) : fd_(std::move(fd)), run_(run), mmap_size_(size) {}
  vmm::Fd fd_;
  kvm_run* run_ = nullptr;
  size_t mmap_size_ = 0;
};

}  // namespace kvmbus::kvm
