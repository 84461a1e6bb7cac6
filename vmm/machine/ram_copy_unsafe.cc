// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "vmm/machine/ram_copy.h"

namespace kvmbus::vmm {
namespace {

bool IsZeroPage(const uint8_t* page) {
  // SAFETY: the caller gives a whole page of guest RAM while the machine is stopped.
  return page[0] == 0 && std::memcmp(page, page + 1, kPageSize - 1) == 0;
}

}  // namespace

Result<RamCopy> RamCopy::Take(const GuestMemory& memory) {
  RamCopy copy;
  copy.file_ = Fd(::memfd_create("ram-copy", MFD_CLOEXEC));
  if (!copy.file_.valid())
    return Error::FromErrno(errno, "memfd_create for a copy of guest memory");
  for (const auto& region : memory.regions()) {
    for (uint64_t at = 0; at < region.size; at += kPageSize) {
      const uint8_t* page = region.hva + at;
      if (IsZeroPage(page)) continue;
      TRY_VOID_CTX(PWriteAll(copy.file_.get(), {page, kPageSize}, copy.pfns_.size() * kPageSize),
                   "copying guest memory");
      copy.pfns_.push_back((region.gpa + at) >> kPageShift);
    }
  }
  return copy;
}

Result<void> RamCopy::Clear(GuestMemory& memory) {
  const auto size = static_cast<off_t>(memory.ram_bytes());
  if (::fallocate(memory.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, size) < 0)
    return Error::FromErrno(errno, "clearing guest memory");
  return {};
}

Result<void> RamCopy::PutBack(GuestMemory& memory) const {
  for (size_t i = 0; i < pfns_.size(); ++i) {
    const uint64_t gpa = pfns_[i] << kPageShift;
    // SAFETY: Take saw this page in the same memory.
    uint8_t* page = memory.HostPointer(gpa, kPageSize);
    KVMBUS_ASSERT(page != nullptr);
    TRY_VOID_CTX(PReadAll(file_.get(), {page, kPageSize}, i * kPageSize),
                 "putting guest memory back");
    memory.MarkDirty(gpa, kPageSize);
  }
  return {};
}

}  // namespace kvmbus::vmm
