// SPDX-License-Identifier: Apache-2.0
#include "kvm/uapi/kvm_fds.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "vmm/os/file.h"

namespace kvmbus::kvm {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::Result;

// In C++ the kernel's flexible arrays (__DECLARE_FLEX_ARRAY) make their structs larger than the ABI
// says, and with them the ioctl numbers. Hence the heads and the numbers once more, by their sizes
// in C.
constexpr unsigned kCountAndPadding = 8;  // kvm_cpuid2, kvm_msrs, kvm_irq_routing
constexpr unsigned kCountAlone = 4;       // kvm_msr_list
constexpr unsigned long kGetSupportedCpuid =
    _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x05, kCountAndPadding);
constexpr unsigned long kGetSupportedHvCpuid =
    _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xc1, kCountAndPadding);
constexpr unsigned long kGetMsrIndexList = _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x02, kCountAlone);
constexpr unsigned long kSetGsiRouting = _IOC(_IOC_WRITE, KVMIO, 0x6a, kCountAndPadding);
constexpr unsigned long kSetCpuid2 = _IOC(_IOC_WRITE, KVMIO, 0x90, kCountAndPadding);
constexpr unsigned long kGetMsrs = _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x88, kCountAndPadding);
constexpr unsigned long kSetMsrs = _IOC(_IOC_WRITE, KVMIO, 0x89, kCountAndPadding);
constexpr unsigned long kGetXsave = _IOC(_IOC_READ, KVMIO, 0xa4, kXsaveBytes);
constexpr unsigned long kGetXsave2 = _IOC(_IOC_READ, KVMIO, 0xcf, kXsaveBytes);
constexpr unsigned long kSetXsave = _IOC(_IOC_WRITE, KVMIO, 0xa5, kXsaveBytes);

/// A count and an array behind it, on the heap and zeroed.
template <typename Entry, unsigned kHeadBytes>
class Counted {
 public:
  explicit Counted(size_t count) : words_((kHeadBytes + count * sizeof(Entry) + 7) / 8) {
    set_count(count);
  }
  void* argument() { return words_.data(); }
  uint32_t count() const {
    uint32_t value;
    std::memcpy(&value, words_.data(), sizeof(value));
    return value;
  }
  Entry* entries() {
    return reinterpret_cast<Entry*>(reinterpret_cast<char*>(words_.data()) + kHeadBytes);
  }

 private:
  void set_count(size_t count) {
    const auto value = static_cast<uint32_t>(count);
    std::memcpy(words_.data(), &value, sizeof(value));
  }
  std::vector<uint64_t> words_;
};

Result<void> Void(const Result<int>& result) {
  if (!result.ok()) return result.error();
  return {};
}

Result<std::vector<kvm_cpuid_entry2>> ReadCpuid(int fd, unsigned long request, const char* name) {
  for (uint32_t count = 128; count <= 4096; count *= 2) {
    Counted<kvm_cpuid_entry2, kCountAndPadding> buffer(count);
    const auto done = KvmIoctl(fd, request, name, buffer.argument());
    if (!done.ok() && done.error().sys_errno() == E2BIG) continue;
    if (!done.ok()) return done.error();
    return std::vector(buffer.entries(), buffer.entries() + buffer.count());
  }
  return vmm::MakeError(Code::kInternal, "{} reports more leaves than expected", name);
}

}  // namespace

Result<int> KvmIoctl(int fd, unsigned long request, const char* name, void* argument) {
  const int value = ::ioctl(fd, request, argument);
  if (value < 0) return Error::FromErrno(errno, name);
  return value;
}

Result<int> KvmIoctl(int fd, unsigned long request, const char* name, unsigned long argument) {
  const int value = ::ioctl(fd, request, argument);
  if (value < 0) return Error::FromErrno(errno, name);
  return value;
}

Result<SystemFd> SystemFd::Open() {
  auto fd = vmm::OpenFile("/dev/kvm", O_RDWR);
  if (!fd.ok()) {
    if (fd.error().code() == Code::kNotFound)
      return Error(Code::kUnimplemented,
                   "/dev/kvm does not exist: enable virtualization in the firmware's setup and "
                   "load kvm_intel or kvm_amd");
    if (fd.error().code() == Code::kPermissionDenied)
      return Error(Code::kPermissionDenied,
                   "/dev/kvm cannot be opened: run as root or add the user to group 'kvm'");
    return std::move(fd.error());
  }
  SystemFd system(std::move(fd).value());
  const int version = TRY(KvmIoctl(system.fd_.get(), KVM_GET_API_VERSION, "KVM_GET_API_VERSION"));
  if (version != KVM_API_VERSION)
    return vmm::MakeError(Code::kFailedPrecondition, "/dev/kvm speaks API version {}, needed is {}",
                          version, KVM_API_VERSION);
  return system;
}

int SystemFd::CheckExtension(int capability) const {
  return KvmIoctl(fd_.get(), KVM_CHECK_EXTENSION, "KVM_CHECK_EXTENSION",
                  static_cast<unsigned long>(capability))
      .value_or(0);
}

Result<std::vector<kvm_cpuid_entry2>> SystemFd::SupportedCpuid() const {
  return ReadCpuid(fd_.get(), kGetSupportedCpuid, "KVM_GET_SUPPORTED_CPUID");
}

Result<std::vector<kvm_cpuid_entry2>> SystemFd::SupportedHvCpuid() const {
  return ReadCpuid(fd_.get(), kGetSupportedHvCpuid, "KVM_GET_SUPPORTED_HV_CPUID");
}

Result<std::vector<uint32_t>> SystemFd::MsrIndexList() const {
  constexpr uint32_t kMax = 4096;
  Counted<uint32_t, kCountAlone> buffer(kMax);
  TRY(KvmIoctl(fd_.get(), kGetMsrIndexList, "KVM_GET_MSR_INDEX_LIST", buffer.argument()));
  return std::vector(buffer.entries(), buffer.entries() + buffer.count());
}

Result<size_t> SystemFd::VcpuMmapSize() const {
  return static_cast<size_t>(
      TRY(KvmIoctl(fd_.get(), KVM_GET_VCPU_MMAP_SIZE, "KVM_GET_VCPU_MMAP_SIZE")));
}

Result<vmm::Fd> SystemFd::CreateVm() const {
  return vmm::Fd(TRY(KvmIoctl(fd_.get(), KVM_CREATE_VM, "KVM_CREATE_VM")));
}

int VmFd::CheckExtension(int capability) const {
  return KvmIoctl(fd_.get(), KVM_CHECK_EXTENSION, "KVM_CHECK_EXTENSION",
                  static_cast<unsigned long>(capability))
      .value_or(0);
}

Result<void> VmFd::EnableCap(uint32_t capability, const char* name, uint64_t argument0) const {
  kvm_enable_cap request = {};
  request.cap = capability;
  request.args[0] = argument0;
  return Void(KvmIoctl(fd_.get(), KVM_ENABLE_CAP, name, &request));
}

Result<void> VmFd::SetTssAddr(uint64_t gpa) const {
  return Void(KvmIoctl(fd_.get(), KVM_SET_TSS_ADDR, "KVM_SET_TSS_ADDR", gpa));
}

Result<void> VmFd::SetIdentityMapAddr(uint64_t gpa) const {
  return Void(KvmIoctl(fd_.get(), KVM_SET_IDENTITY_MAP_ADDR, "KVM_SET_IDENTITY_MAP_ADDR", &gpa));
}

Result<void> VmFd::CreateIrqchip() const {
  return Void(KvmIoctl(fd_.get(), KVM_CREATE_IRQCHIP, "KVM_CREATE_IRQCHIP"));
}

Result<void> VmFd::CreatePit2() const {
  kvm_pit_config config = {};
  config.flags = KVM_PIT_SPEAKER_DUMMY;
  return Void(KvmIoctl(fd_.get(), KVM_CREATE_PIT2, "KVM_CREATE_PIT2", &config));
}

Result<vmm::Fd> VmFd::CreateVcpu(uint32_t index) const {
  return vmm::Fd(TRY(KvmIoctl(fd_.get(), KVM_CREATE_VCPU, "KVM_CREATE_VCPU", index)));
}

Result<void> VmFd::SetUserMemoryRegion(const kvm_userspace_memory_region& region) const {
  kvm_userspace_memory_region copy = region;
  return Void(KvmIoctl(fd_.get(), KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", &copy));
}

Result<void> VmFd::GetDirtyLog(uint32_t slot, std::span<uint64_t> bitmap) const {
  kvm_dirty_log log = {};
  log.slot = slot;
  log.dirty_bitmap = bitmap.data();
  return Void(KvmIoctl(fd_.get(), KVM_GET_DIRTY_LOG, "KVM_GET_DIRTY_LOG", &log));
}

Result<void> VmFd::ClearDirtyLog(uint32_t slot, uint64_t first, uint32_t pages,
                                 std::span<const uint64_t> bitmap) const {
  kvm_clear_dirty_log log = {};
  log.slot = slot;
  log.first_page = first;
  log.num_pages = pages;
  log.dirty_bitmap = const_cast<uint64_t*>(bitmap.data());
  return Void(KvmIoctl(fd_.get(), KVM_CLEAR_DIRTY_LOG, "KVM_CLEAR_DIRTY_LOG", &log));
}

Result<void> VmFd::SetGsiRouting(std::span<const kvm_irq_routing_entry> entries) const {
  Counted<kvm_irq_routing_entry, kCountAndPadding> buffer(entries.size());
  std::copy(entries.begin(), entries.end(), buffer.entries());
  return Void(KvmIoctl(fd_.get(), kSetGsiRouting, "KVM_SET_GSI_ROUTING", buffer.argument()));
}

Result<void> VmFd::AssignIrqfd(const kvm_irqfd& irqfd) const {
  kvm_irqfd copy = irqfd;
  return Void(KvmIoctl(fd_.get(), KVM_IRQFD, "KVM_IRQFD", &copy));
}

Result<void> VmFd::AssignHypervEventfd(uint32_t connection_id, int event_fd, bool deassign) const {
  kvm_hyperv_eventfd request = {};
  request.conn_id = connection_id;
  request.fd = event_fd;
  request.flags = deassign ? KVM_HYPERV_EVENTFD_DEASSIGN : 0;
  return Void(KvmIoctl(fd_.get(), KVM_HYPERV_EVENTFD, "KVM_HYPERV_EVENTFD", &request));
}

Result<void> VmFd::IrqLine(uint32_t gsi, bool level) const {
  kvm_irq_level request = {};
  request.irq = gsi;
  request.level = level ? 1 : 0;
  return Void(KvmIoctl(fd_.get(), KVM_IRQ_LINE, "KVM_IRQ_LINE", &request));
}

Result<void> VmFd::SetMsrFilterDeny(uint32_t first_msr, uint32_t count) const {
  uint8_t deny_all[32] = {};  // a clear bit denies
  KVMBUS_ASSERT(count <= sizeof(deny_all) * 8);
  kvm_msr_filter filter = {};
  filter.flags = KVM_MSR_FILTER_DEFAULT_ALLOW;
  filter.ranges[0].flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
  filter.ranges[0].base = first_msr;
  filter.ranges[0].nmsrs = count;
  filter.ranges[0].bitmap = deny_all;
  return Void(KvmIoctl(fd_.get(), KVM_X86_SET_MSR_FILTER, "KVM_X86_SET_MSR_FILTER", &filter));
}

Result<kvm_clock_data> VmFd::GetClock() const {
  kvm_clock_data clock = {};
  TRY(KvmIoctl(fd_.get(), KVM_GET_CLOCK, "KVM_GET_CLOCK", &clock));
  return clock;
}

Result<void> VmFd::SetClock(const kvm_clock_data& clock) const {
  kvm_clock_data copy = clock;
  return Void(KvmIoctl(fd_.get(), KVM_SET_CLOCK, "KVM_SET_CLOCK", &copy));
}

Result<kvm_irqchip> VmFd::GetIrqchip(uint32_t chip) const {
  kvm_irqchip state = {};
  state.chip_id = chip;
  TRY(KvmIoctl(fd_.get(), KVM_GET_IRQCHIP, "KVM_GET_IRQCHIP", &state));
  return state;
}

Result<void> VmFd::SetIrqchip(const kvm_irqchip& chip) const {
  kvm_irqchip copy = chip;
  return Void(KvmIoctl(fd_.get(), KVM_SET_IRQCHIP, "KVM_SET_IRQCHIP", &copy));
}

Result<kvm_pit_state2> VmFd::GetPit2() const {
  kvm_pit_state2 pit = {};
  TRY(KvmIoctl(fd_.get(), KVM_GET_PIT2, "KVM_GET_PIT2", &pit));
  return pit;
}

Result<void> VmFd::SetPit2(const kvm_pit_state2& pit) const {
  kvm_pit_state2 copy = pit;
  return Void(KvmIoctl(fd_.get(), KVM_SET_PIT2, "KVM_SET_PIT2", &copy));
}

Result<VcpuFd> VcpuFd::Create(const VmFd& vm, uint32_t index, size_t mmap_size) {
  vmm::Fd fd = TRY(vm.CreateVcpu(index));
  void* page = ::mmap(nullptr, mmap_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (page == MAP_FAILED) return Error::FromErrno(errno, "mapping kvm_run");
  return VcpuFd(std::move(fd), static_cast<kvm_run*>(page), mmap_size);
}

VcpuFd::VcpuFd(VcpuFd&& other) noexcept
    : fd_(std::move(other.fd_)),
      run_(std::exchange(other.run_, nullptr)),
      mmap_size_(other.mmap_size_) {}

VcpuFd::~VcpuFd() {
  if (run_ != nullptr) ::munmap(run_, mmap_size_);
}

int VcpuFd::Run() const { return ::ioctl(fd_.get(), KVM_RUN, 0) < 0 ? errno : 0; }

Result<void> VcpuFd::EnableCap(uint32_t capability, const char* name) const {
  kvm_enable_cap request = {};
  request.cap = capability;
  return Void(KvmIoctl(fd_.get(), KVM_ENABLE_CAP, name, &request));
}

Result<void> VcpuFd::SetCpuid2(std::span<const kvm_cpuid_entry2> entries) const {
  Counted<kvm_cpuid_entry2, kCountAndPadding> buffer(entries.size());
  std::copy(entries.begin(), entries.end(), buffer.entries());
  return Void(KvmIoctl(fd_.get(), kSetCpuid2, "KVM_SET_CPUID2", buffer.argument()));
}

Result<int> VcpuFd::TscKhz() const {
  return KvmIoctl(fd_.get(), KVM_GET_TSC_KHZ, "KVM_GET_TSC_KHZ");
}

Result<std::vector<kvm_msr_entry>> VcpuFd::GetMsrs(std::span<const uint32_t> indices) const {
  std::vector<kvm_msr_entry> values;
  size_t at = 0;
  while (at < indices.size()) {
    const size_t count = indices.size() - at;
    Counted<kvm_msr_entry, kCountAndPadding> buffer(count);
    for (size_t i = 0; i < count; ++i) buffer.entries()[i].index = indices[at + i];
    const int got = TRY(KvmIoctl(fd_.get(), kGetMsrs, "KVM_GET_MSRS", buffer.argument()));
    values.insert(values.end(), buffer.entries(), buffer.entries() + got);
    at += static_cast<size_t>(got) +
          1;  // KVM stops at the first that it does not know: skip that one
  }
  return values;
}

Result<void> VcpuFd::SetMsrs(std::span<const kvm_msr_entry> entries) const {
  if (entries.empty()) return {};
  Counted<kvm_msr_entry, kCountAndPadding> buffer(entries.size());
  std::copy(entries.begin(), entries.end(), buffer.entries());
  const int done = TRY(KvmIoctl(fd_.get(), kSetMsrs, "KVM_SET_MSRS", buffer.argument()));
  if (static_cast<size_t>(done) != entries.size()) {
    const kvm_msr_entry& refused = entries[static_cast<size_t>(done)];
    return vmm::MakeError(Code::kInvalidArgument, "KVM refuses MSR {:#x} = {:#x}", refused.index,
                          uint64_t{refused.data});
  }
  return {};
}

Result<std::string> VcpuFd::GetXsave(size_t bytes) const {
  std::string state(std::max<size_t>(bytes, kXsaveBytes), '\0');
  const bool wide = bytes > kXsaveBytes;
  TRY(KvmIoctl(fd_.get(), wide ? kGetXsave2 : kGetXsave, "KVM_GET_XSAVE2", state.data()));
  return state;
}

Result<void> VcpuFd::SetXsave(const std::string& bytes) const {
  std::string copy = bytes;
  return Void(KvmIoctl(fd_.get(), kSetXsave, "KVM_SET_XSAVE", copy.data()));
}

}  // namespace kvmbus::kvm
