// SPDX-License-Identifier: Apache-2.0
#include "kvm/dirty_log.h"

#include <algorithm>

#include "vmm/os/log.h"

namespace kvmbus::kvm {
namespace {

using vmm::Result;

/// Protected in one call, 16 MiB: KVM's lock, for which faulting processors wait, is held as long.
constexpr uint64_t kProtectWords = 64;
constexpr uint64_t kPagesInWord = 64;

/// The words of a set that a region's pages are in: regions lie at multiples of 2 MiB.
std::pair<size_t, size_t> WordsOf(const vmm::GuestMemory::Region& region) {
  return {region.file_offset / vmm::kPageSize / kPagesInWord,
          region.size / vmm::kPageSize / kPagesInWord};
}

}  // namespace

Result<void> DirtyLog::AddMemory() {
  // The guest's pages start as written, so that turning the log on protects none.
  TRY_VOID(vm_.EnableCap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
                         KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET));
  return SetSlots(0);
}

Result<void> DirtyLog::SetSlots(uint32_t flags) const {
  uint32_t slot = 0;
  for (const auto& region : memory_.regions()) {
    kvm_userspace_memory_region request = {};
    request.slot = slot++;
    request.flags = flags;
    request.guest_phys_addr = region.gpa;
    request.memory_size = region.size;
    request.userspace_addr = reinterpret_cast<uintptr_t>(region.hva);
    TRY_VOID_CTX(vm_.SetUserMemoryRegion(request), "giving KVM {} MiB of RAM at {:#x}",
                 region.size >> 20, region.gpa);
  }
  return {};
}

Result<void> DirtyLog::Protect(uint32_t slot, std::span<const uint64_t> pages) const {
  for (size_t at = 0; at < pages.size(); at += kProtectWords) {
    const auto piece = pages.subspan(at, std::min(kProtectWords, pages.size() - at));
    if (std::all_of(piece.begin(), piece.end(), [](uint64_t word) { return word == 0; })) continue;
    TRY_VOID(vm_.ClearDirtyLog(slot, at * kPagesInWord,
                               static_cast<uint32_t>(piece.size() * kPagesInWord), piece));
  }
  return {};
}

Result<void> DirtyLog::StartTracking() {
  TRY_VOID(SetSlots(KVM_MEM_LOG_DIRTY_PAGES));
  uint32_t slot = 0;
  for (const auto& region : memory_.regions()) {
    const std::vector<uint64_t> all(WordsOf(region).second, ~uint64_t{0});
    TRY_VOID(Protect(slot++, all));
  }
  return {};
}

Result<void> DirtyLog::TakeDirtyPages(vmm::PageSet* pages, bool last) {
  uint32_t slot = 0;
  for (const auto& region : memory_.regions()) {
    const auto [first, count] = WordsOf(region);
    std::vector<uint64_t> dirty(count);
    TRY_VOID(vm_.GetDirtyLog(slot, dirty));
    for (size_t i = 0; i < count; ++i) pages->words()[first + i] |= dirty[i];
    if (!last) TRY_VOID(Protect(slot, dirty));
    ++slot;
  }
  return {};
}

void DirtyLog::StopTracking() {
  const auto stopped = SetSlots(0);
  if (!stopped.ok()) spdlog::error("stopping the dirty log: {}", stopped.error().ToString());
}

}  // namespace kvmbus::kvm
