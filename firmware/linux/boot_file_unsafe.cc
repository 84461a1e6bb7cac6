// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>

#include <algorithm>

#include "firmware/linux/boot_file.h"
#include "vmm/os/file.h"

namespace kvmbus::firmware {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

Result<BootFile> BootFile::Open(std::string_view role, const std::string& path, int fd) {
  BootFile file;
  file.name_ = fmt::format("{} '{}'", role, path);
  if (fd >= 0) {
    vmm::Fd borrowed(fd);
    auto duplicate = borrowed.Duplicate();
    borrowed.Release();
    file.fd_ = TRY_CTX(std::move(duplicate), "{}", file.name_);
  } else {
    file.fd_ = TRY_CTX(vmm::OpenFile(path, O_RDONLY), "{}", file.name_);
  }
  file.size_ = TRY_CTX(vmm::FileSize(file.fd_.get()), "{}", file.name_);
  return file;
}

Result<void> BootFile::Read(std::span<uint8_t> buffer, uint64_t offset) const {
  if (offset > size_ || buffer.size() > size_ - offset)
    return MakeError(Code::kDataLoss, "{} is truncated: it has {} bytes, {} are needed", name_,
                     size_, offset + buffer.size());
  TRY_VOID_CTX(vmm::PReadAll(fd_.get(), buffer, offset), "reading {}", name_);
  return {};
}

Result<void> BootFile::ReadIntoGuest(vmm::GuestMemory& memory, uint64_t gpa, uint64_t size,
                                     uint64_t offset) const {
  uint8_t* target = memory.HostPointer(gpa, size);
  if (target == nullptr)
    return MakeError(Code::kResourceExhausted,
                     "{} does not fit: {} bytes at {:#x} are not all RAM; give the VM more memory",
                     name_, size, gpa);
  // SAFETY: HostPointer bounds the range, and the guest does not run yet.
  TRY_VOID(Read({target, size}, offset));
  memory.MarkDirty(gpa, size);
  return {};
}

}  // namespace kvmbus::firmware
