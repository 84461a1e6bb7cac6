// SPDX-License-Identifier: Apache-2.0
/// \file
/// Direct boot of Linux: a bzImage or an ELF vmlinux with an optional initrd, without firmware.
///
/// A bzImage is entered in one of two ways. By default the host decompresses the kernel inside it
/// and enters that kernel directly, which saves the guest its slow decompressor. The price is
/// KASLR: the decompressor also picks the kernel's random place, so a kernel entered directly runs
/// as if with "nokaslr", at the addresses it was linked for. With `decompress_on_host` off, or if
/// the payload cannot be decompressed here, the bzImage is entered unchanged at its 64-bit entry
/// and does both itself. The file is never modified.
#pragma once

#include <string>

#include "vmm/hypervisor/boot_state.h"
#include "vmm/machine/layout.h"
#include "vmm/memory/guest_memory.h"

namespace kvmbus::firmware {

enum class LinuxEntry {
  kAuto,    ///< bzImage: 64-bit; ELF: PVH if it has the note, else 64-bit
  kLong64,  ///< the 64-bit boot protocol
  kPvh,     ///< the 32-bit PVH entry; an error if the kernel has none
};

struct LinuxBootParams {
  std::string kernel_path;
  std::string initrd_path;  ///< empty: none
  std::string command_line;
  LinuxEntry prefer = LinuxEntry::kAuto;
  bool decompress_on_host = true;
  /// Already open files, kept by the caller, read by offset; -1: opened by path at each load. The
  /// paths then only name them in messages.
  int kernel_fd = -1;
  int initrd_fd = -1;
};

/// Fills guest RAM for a boot; called anew for every reset. Writes below 1 MiB (low_memory.h), the
/// kernel and the initrd, and nothing else: ACPI and SMBIOS are their own writers' matter.
vmm::Result<vmm::BootState> LoadLinux(vmm::GuestMemory& memory, const vmm::MemoryLayout& layout,
                                      const LinuxBootParams& params);

}  // namespace kvmbus::firmware
