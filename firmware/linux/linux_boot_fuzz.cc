// SPDX-License-Identifier: Apache-2.0
// A hostile kernel: its bytes go through both ways of loading.
#include <sys/mman.h>

#include <cstdlib>

#include "firmware/linux/linux_boot.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvmbus;
  static const vmm::MemoryLayout layout = vmm::ComputeMemoryLayout(16 << 20);
  static const auto memory = std::move(vmm::GuestMemory::Create(layout.ram)).value();
  static const vmm::Fd file(::memfd_create("kernel", MFD_CLOEXEC));
  if (::ftruncate(file.get(), 0) != 0 || !vmm::PWriteAll(file.get(), {data, size}, 0).ok()) abort();
  firmware::LinuxBootParams params;
  params.kernel_path = "fuzz";
  params.kernel_fd = file.get();
  params.command_line = "console=ttyS0";
  for (const auto prefer : {firmware::LinuxEntry::kPvh, firmware::LinuxEntry::kLong64}) {
    params.prefer = prefer;
    const auto boot = firmware::LoadLinux(*memory, layout, params);
    if (boot.ok() && !memory->Contains(boot->rip, 1)) abort();
  }
  params.decompress_on_host = false;
  (void)firmware::LoadLinux(*memory, layout, params);
  return 0;
}
