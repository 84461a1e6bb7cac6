// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "vmm/memory/guest_memory.h"

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif

namespace kvmbus::vmm {

PageMapping& PageMapping::operator=(PageMapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(pages_, other.pages_);
  std::swap(size_, other.size_);
  std::swap(memory_, other.memory_);
  std::swap(pfns_, other.pfns_);
  return *this;
}

PageMapping::~PageMapping() {
  if (data_ == nullptr) return;
  ::munmap(data_, size_);
  memory_->CountMapped(pfns_, false);
}

void PageMapping::MarkDirty(size_t offset, size_t size) const {
  KVMBUS_ASSERT(offset <= size_ && size <= size_ - offset);
  while (size != 0) {
    const size_t in_page = offset % kPageSize;
    const size_t piece = std::min(size, kPageSize - in_page);
    memory_->MarkDirty((pfns_[offset / kPageSize] << kPageShift) + in_page, piece);
    offset += piece;
    size -= piece;
  }
}

Result<void> GuestMemory::SetRegions(std::span<const MemoryRange> ranges) {
  uint64_t end = 0;
  for (const MemoryRange& range : ranges) {
    if (range.gpa < end || range.gpa % kPageSize != 0 || range.size % kPageSize != 0 ||
        range.size == 0 || range.gpa + range.size < range.gpa)
      return Error(Code::kInvalidArgument, "memory ranges overlap or are not page-aligned");
    end = range.gpa + range.size;
    regions_.push_back({range.gpa, range.size, nullptr, ram_bytes_});
    ram_bytes_ += range.size;  // no more than `end`
  }
  return {};
}

Result<void> GuestMemory::Map(int flags) {
  // Reserve 2 MiB more than asked, so that the RAM can start at a huge-page boundary.
  constexpr uint64_t kAlign = kHugePageSize;
  if (ram_bytes_ > ~uint64_t{0} / 2) return Error(Code::kOutOfRange, "more memory than there is");
  void* reserved = ::mmap(nullptr, ram_bytes_ + kAlign, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED)
    return Error::FromErrno(errno, "reserving addresses for guest memory");
  const auto start = reinterpret_cast<uintptr_t>(reserved);
  const uintptr_t aligned = (start + kAlign - 1) & ~(kAlign - 1);
  if (aligned != start) ::munmap(reserved, aligned - start);
  const uintptr_t tail = start + kAlign - aligned;
  if (tail != 0) ::munmap(reinterpret_cast<void*>(aligned + ram_bytes_), tail);
  void* base = ::mmap(reinterpret_cast<void*>(aligned), ram_bytes_, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_FIXED | flags, memfd_.get(), 0);
  if (base == MAP_FAILED) {
    const int saved = errno;
    ::munmap(reinterpret_cast<void*>(aligned), ram_bytes_);
    return Error::FromErrno(saved, "mapping guest memory");
  }
  base_ = static_cast<uint8_t*>(base);
  ::madvise(base, ram_bytes_, MADV_DONTDUMP);
  for (Region& region : regions_) region.hva = base_ + region.file_offset;
  return {};
}

Result<std::unique_ptr<GuestMemory>> GuestMemory::Create(std::span<const MemoryRange> ranges,
                                                         Options options) {
  std::unique_ptr<GuestMemory> self(new GuestMemory());
  TRY_VOID(self->SetRegions(ranges));
  if (options.huge_pages) self->host_page_bytes_ = kHugePageSize;
  const unsigned huge = options.huge_pages ? MFD_HUGETLB | MFD_HUGE_2MB : 0;
  self->memfd_ = Fd(::memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING | huge));
  if (!self->memfd_.valid()) return Error::FromErrno(errno, "memfd_create for guest memory");
  if (::ftruncate(self->memfd_.get(), static_cast<off_t>(self->ram_bytes_)) < 0)
    return Error::FromErrno(
        errno, fmt::format("reserving {} MiB of guest memory", self->ram_bytes_ >> 20));
  // Whoever else maps it (a shared disk's owner) need not fear that it shrinks.
  if (::fcntl(self->memfd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
    return Error::FromErrno(errno, "sealing the size of guest memory");
  if (options.huge_pages) {
    // Set aside: a touch of one that is not to be had would kill us.
    auto mapped = self->Map(0);
    if (mapped.ok()) return self;
    return std::move(mapped.error())
        .WithContext(fmt::format("{} huge pages of 2 MiB are not free (see vm.nr_hugepages)",
                                 self->ram_bytes_ / kHugePageSize));
  }
  TRY_VOID(self->Map(MAP_NORESERVE));
  ::madvise(self->base_, self->ram_bytes_, MADV_HUGEPAGE);  // a hint; refusal costs nothing
  return self;
}

Result<std::unique_ptr<GuestMemory>> GuestMemory::Adopt(std::span<const MemoryRange> ranges,
                                                        Fd memfd) {
  std::unique_ptr<GuestMemory> self(new GuestMemory());
  TRY_VOID(self->SetRegions(ranges));
  // Only memory files have seals: nothing that a file system could hold us up with.
  const int seals = ::fcntl(memfd.get(), F_GET_SEALS);
  struct stat status = {};
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || ::fstat(memfd.get(), &status) < 0 ||
      static_cast<uint64_t>(status.st_size) != self->ram_bytes_ || self->ram_bytes_ == 0)
    return Error(Code::kInvalidArgument, "no memory file of the size of its ranges, sealed so");
  struct statfs file_system = {};
  if (::fstatfs(memfd.get(), &file_system) < 0)
    return Error::FromErrno(errno, "looking at guest memory");
  if (file_system.f_type == HUGETLBFS_MAGIC)
    self->host_page_bytes_ = static_cast<uint64_t>(file_system.f_bsize);
  self->memfd_ = std::move(memfd);
  // Huge pages are reserved for this mapping too: a touch of one that is not to be had kills us.
  TRY_VOID(self->Map(0));
  return self;
}

GuestMemory::~GuestMemory() {
  if (base_ != nullptr) ::munmap(base_, ram_bytes_);
}

const GuestMemory::Region* GuestMemory::Locate(uint64_t gpa, uint64_t size) const {
  for (const Region& region : regions_) {
    if (gpa >= region.gpa && gpa - region.gpa < region.size &&
        size <= region.size - (gpa - region.gpa))
      return &region;
  }
  return nullptr;
}

uint8_t* GuestMemory::HostPointer(uint64_t gpa, uint64_t size) const {
  const Region* region = Locate(gpa, size);
  return region == nullptr ? nullptr : region->hva + (gpa - region->gpa);
}

bool GuestMemory::Read(uint64_t gpa, void* buffer, size_t size) const {
  const uint8_t* source = HostPointer(gpa, size);
  if (source == nullptr) return false;
  // SAFETY: Locate bounds the range; the guest may change bytes meanwhile, the copy is what counts.
  std::memcpy(buffer, source, size);
  return true;
}

bool GuestMemory::Write(uint64_t gpa, const void* buffer, size_t size) {
  uint8_t* target = HostPointer(gpa, size);
  if (target == nullptr) return false;
  // SAFETY: Locate bounds the range.
  std::memcpy(target, buffer, size);
  MarkDirty(gpa, size);
  return true;
}

bool GuestMemory::Zero(uint64_t gpa, size_t size) {
  uint8_t* target = HostPointer(gpa, size);
  if (target == nullptr) return false;
  // SAFETY: Locate bounds the range.
  std::memset(target, 0, size);
  MarkDirty(gpa, size);
  return true;
}

std::optional<MemoryRange> GuestMemory::NextBacked(uint64_t gpa, uint64_t size) const {
  const Region* region = Locate(gpa, size);
  KVMBUS_ASSERT(region != nullptr);
  const uint64_t start = region->file_offset + (gpa - region->gpa);
  const auto backed = NextBackedInFile(start, size);
  if (!backed) return std::nullopt;
  return MemoryRange{gpa + (backed->offset - start), backed->size};
}

std::optional<GuestMemory::FileRange> GuestMemory::NextBackedInFile(uint64_t offset,
                                                                    uint64_t size) const {
  const off_t data = ::lseek(memfd_.get(), static_cast<off_t>(offset), SEEK_DATA);
  // Huge pages' file system cannot tell: then there may be something everywhere.
  if (data < 0 && errno != ENXIO) return FileRange{offset, size};
  if (data < 0 || static_cast<uint64_t>(data) >= offset + size) return std::nullopt;
  const off_t hole = ::lseek(memfd_.get(), data, SEEK_HOLE);
  const uint64_t end = hole < 0 ? offset + size : std::min<uint64_t>(hole, offset + size);
  return FileRange{static_cast<uint64_t>(data), end - static_cast<uint64_t>(data)};
}

Result<void> GuestMemory::CheckPages(std::span<const uint64_t> pfns) const {
  if (pfns.empty()) return Error(Code::kInvalidArgument, "no pages to map");
  for (const uint64_t pfn : pfns) {
    if (pfn >= (uint64_t{1} << 52) || !Contains(pfn << kPageShift, kPageSize))
      return MakeError(Code::kInvalidArgument, "page frame {:#x} is not guest RAM", pfn);
  }
  return {};
}

Result<PageMapping> GuestMemory::FindPages(std::span<const uint64_t> pfns) {
  TRY_VOID(CheckPages(pfns));
  PageMapping mapping;
  mapping.size_ = pfns.size() * kPageSize;
  mapping.memory_ = this;
  mapping.pfns_.assign(pfns.begin(), pfns.end());
  // SAFETY: CheckPages bounds them; who follows the pointers is the mapping's user.
  for (const uint64_t pfn : pfns)
    mapping.pages_.push_back(HostPointer(pfn << kPageShift, kPageSize));
  return mapping;
}

Result<PageMapping> GuestMemory::MapPages(std::span<const uint64_t> pfns) {
  if (host_page_bytes_ != kPageSize) return FindPages(pfns);
  TRY_VOID(CheckPages(pfns));
  PageMapping mapping;
  mapping.size_ = pfns.size() * kPageSize;
  void* base =
      ::mmap(nullptr, mapping.size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return Error::FromErrno(errno, "reserving addresses for guest pages");
  mapping.data_ = static_cast<uint8_t*>(base);
  mapping.memory_ = this;
  mapping.pfns_.assign(pfns.begin(), pfns.end());
  CountMapped(pfns, true);
  for (size_t first = 0; first < pfns.size();) {
    const Region* region = Locate(pfns[first] << kPageShift, kPageSize);
    size_t count = 1;
    while (first + count < pfns.size() && pfns[first + count] == pfns[first] + count &&
           Locate(pfns[first + count] << kPageShift, kPageSize) == region)
      ++count;
    const uint64_t offset = region->file_offset + ((pfns[first] << kPageShift) - region->gpa);
    // SAFETY: the target lies in the reservation above, which this mapping owns.
    void* piece =
        ::mmap(mapping.data_ + first * kPageSize, count * kPageSize, PROT_READ | PROT_WRITE,
               MAP_SHARED | MAP_FIXED, memfd_.get(), static_cast<off_t>(offset));
    if (piece == MAP_FAILED) return Error::FromErrno(errno, "mapping guest pages");
    first += count;
  }
  return mapping;
}

void GuestMemory::MarkDirty(uint64_t gpa, uint64_t size) {
  if (!tracking_.load(std::memory_order_relaxed) || size == 0) return;
  const Region* region = Locate(gpa, size);
  if (region == nullptr) return;
  const uint64_t offset = region->file_offset + (gpa - region->gpa);
  for (uint64_t page = offset >> kPageShift; page <= (offset + size - 1) >> kPageShift; ++page)
    dirty_[page / 64].fetch_or(uint64_t{1} << (page % 64), std::memory_order_release);
}

void GuestMemory::StartDirtyTracking() {
  const size_t words = (ram_bytes_ / kPageSize + 63) / 64;
  if (!dirty_) dirty_ = std::make_unique<std::atomic<uint64_t>[]>(words);
  for (size_t i = 0; i < words; ++i) dirty_[i].store(0, std::memory_order_relaxed);
  tracking_.store(true, std::memory_order_release);
}

void GuestMemory::StopDirtyTracking() { tracking_.store(false, std::memory_order_release); }

void GuestMemory::TakeDirtyPages(PageSet* pages) {
  if (!dirty_) return;
  const std::span<uint64_t> words = pages->words();
  for (size_t i = 0; i < words.size(); ++i) {
    if (dirty_[i].load(std::memory_order_relaxed) != 0)
      words[i] |= dirty_[i].exchange(0, std::memory_order_acquire);
  }
}

std::vector<uint64_t> GuestMemory::TakeDirtyPages() {
  PageSet dirty(ram_pages());
  TakeDirtyPages(&dirty);
  std::vector<uint64_t> pfns;
  for (const Region& region : regions_) {
    for (uint64_t at = 0; at < region.size; at += kPageSize) {
      if (dirty.Contains((region.file_offset + at) >> kPageShift))
        pfns.push_back((region.gpa + at) >> kPageShift);
    }
  }
  return pfns;
}

void GuestMemory::CountMapped(std::span<const uint64_t> pfns, bool mapped) {
  const std::lock_guard lock(mapped_mutex_);
  for (const uint64_t pfn : pfns) {
    const Region* region = Locate(pfn << kPageShift, kPageSize);
    const uint64_t offset = region->file_offset + ((pfn << kPageShift) - region->gpa);
    // Before the count rises: whoever clears the callback meanwhile need not look here again.
    if (mapped && before_mapping_) before_mapping_(reinterpret_cast<uint64_t>(base_) + offset);
    const uint64_t page = offset >> kPageShift;
    if (mapped)
      ++mapped_[page];
    else if (--mapped_[page] == 0)
      mapped_.erase(page);
  }
}

void GuestMemory::AddMappedPages(PageSet* pages) const {
  const std::lock_guard lock(mapped_mutex_);
  for (const auto& [page, count] : mapped_) pages->Add(page);
}

void GuestMemory::SetBeforeMapping(std::function<void(uint64_t)> before) {
  const std::lock_guard lock(mapped_mutex_);
  before_mapping_ = std::move(before);
}

}  // namespace kvmbus::vmm
