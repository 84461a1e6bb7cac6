// SPDX-License-Identifier: Apache-2.0
/// \file
/// BootFile: a kernel or an initrd on the host, with the name that messages give it. The file is
/// hostile: its size is read once, and every read is checked against the file as it is then.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "vmm/memory/guest_memory.h"
#include "vmm/os/fd.h"

namespace kvmbus::firmware {

class BootFile {
 public:
  /// Opens `path`, or uses a second descriptor of `fd` if that is not -1. `role` ("kernel") starts
  /// every message.
  static vmm::Result<BootFile> Open(std::string_view role, const std::string& path, int fd);

  uint64_t size() const { return size_; }
  /// "kernel '/boot/vmlinuz'".
  const std::string& name() const { return name_; }

  vmm::Result<void> Read(std::span<uint8_t> buffer, uint64_t offset) const;
  /// Reads straight into guest RAM, without a copy in this process.
  vmm::Result<void> ReadIntoGuest(vmm::GuestMemory& memory, uint64_t gpa, uint64_t size,
                                  uint64_t offset) const;

 private:
  vmm::Fd fd_;
  uint64_t size_ = 0;
  std::string name_;
};

}  // namespace kvmbus::firmware
