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
    const uint64_t end = region.gpa + region.size;
    for (uint64_t gpa = region.gpa; gpa < end;) {
      const auto backed = memory.NextBacked(gpa, end - gpa);
      if (!backed) break;
      TRY_VOID(copy.Append(memory, *backed));
      gpa = backed->gpa + backed->size;
    }
  }
  return copy;
}

Result<void> RamCopy::Append(const GuestMemory& memory, const MemoryRange& range) {
  // SAFETY: Take's range lies in one region; the machine is stopped.
  const uint8_t* pages = memory.HostPointer(range.gpa, range.size);
  for (uint64_t at = 0; at < range.size; at += kPageSize) {
    if (IsZeroPage(pages + at)) continue;
    TRY_VOID_CTX(PWriteAll(file_.get(), {pages + at, kPageSize}, pfns_.size() * kPageSize),
                 "copying guest memory");
    pfns_.push_back((range.gpa + at) >> kPageShift);
  }
  return {};
}

/// Huge pages stay: a hole would give up what is set aside for this machine, and others take it.
Result<void> RamCopy::Clear(GuestMemory& memory) {
  if (memory.host_page_bytes() != kPageSize) return Overwrite(memory);
  const auto size = static_cast<off_t>(memory.ram_bytes());
  if (::fallocate(memory.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, size) < 0)
    return Error::FromErrno(errno, "clearing guest memory");
  return {};
}

Result<void> RamCopy::Overwrite(GuestMemory& memory) {
  for (const auto& region : memory.regions()) {
    const uint64_t end = region.gpa + region.size;
    for (uint64_t gpa = region.gpa; gpa < end;) {
      const auto backed = memory.NextBacked(gpa, end - gpa);
      if (!backed) break;
      // SAFETY: NextBacked's range lies in one region; the machine is stopped.
      std::memset(memory.HostPointer(backed->gpa, backed->size), 0, backed->size);
      gpa = backed->gpa + backed->size;
    }
  }
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
