// SPDX-License-Identifier: Apache-2.0
/// \file
/// GuestMemory: the RAM of one VM. Everything in it is the guest's and changes at any moment: read
/// once into a local copy, then check, then use.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "vmm/memory/page_set.h"
#include "vmm/os/fd.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

inline constexpr uint64_t kPageSize = 4096;
inline constexpr unsigned kPageShift = 12;
inline constexpr uint64_t kHugePageSize = 2u << 20;

struct MemoryRange {
  uint64_t gpa;   ///< page-aligned
  uint64_t size;  ///< bytes, a page multiple
};

class GuestMemory;

/// Guest pages as if in a row in the order asked for, the same page more than once if so asked (a
/// ring's data pages twice, so that no packet wraps). They are mapped so where the memory's pages
/// are small, else found one by one. Unmapped when destroyed; must not outlive its GuestMemory.
class PageMapping {
 public:
  PageMapping() = default;
  PageMapping(PageMapping&& other) noexcept { *this = std::move(other); }
  PageMapping& operator=(PageMapping&& other) noexcept;
  ~PageMapping();

  bool valid() const { return size_ != 0; }
  size_t size() const { return size_; }
  /// As much of [offset, offset + size), which is in the mapping, as is in a row from its start:
  /// all of it if the pages are mapped, at least to the end of a page. Shared with the guest: see
  /// *_unsafe files for who may touch it.
  std::span<uint8_t> Piece(size_t offset, size_t size) const {
    if (data_ != nullptr) return {data_ + offset, size};
    const size_t in_page = offset % kPageSize;
    return {pages_[offset / kPageSize] + in_page, std::min<size_t>(size, kPageSize - in_page)};
  }
  /// Notes that the host wrote [offset, offset + size) of the mapping.
  void MarkDirty(size_t offset, size_t size) const;

 private:
  friend class GuestMemory;
  uint8_t* data_ = nullptr;      ///< of the pages in a row; none: they are not mapped so
  std::vector<uint8_t*> pages_;  ///< host addresses of those that are not
  size_t size_ = 0;
  GuestMemory* memory_ = nullptr;
  std::vector<uint64_t> pfns_;
};

/// Any thread may call anything but Create and the dirty-tracking switches; the object lives as
/// long as the VM.
class GuestMemory {
 public:
  struct Options {
    /// Backs the RAM with pages of 2 MiB, reserved by Create, which fails if the host has too few.
    bool huge_pages = false;
  };
  struct Region {
    uint64_t gpa;
    uint64_t size;
    uint8_t* hva;
    uint64_t file_offset;  ///< of the memfd
  };

  /// Ranges ascend and do not overlap. RAM is zero.
  static Result<std::unique_ptr<GuestMemory>> Create(std::span<const MemoryRange> ranges,
                                                     Options options);
  static Result<std::unique_ptr<GuestMemory>> Create(std::span<const MemoryRange> ranges) {
    return Create(ranges, Options());
  }
  /// The RAM of a VM of another process, which is trusted with nothing: `memfd` as that process has
  /// it in fd(), `ranges` of the same order. kInvalidArgument: no memory file of that size, or one
  /// that may shrink under us. Dirty marks made here are not the other process's.
  static Result<std::unique_ptr<GuestMemory>> Adopt(std::span<const MemoryRange> ranges, Fd memfd);
  ~GuestMemory();

  std::span<const Region> regions() const { return regions_; }
  uint64_t ram_bytes() const { return ram_bytes_; }
  uint64_t ram_pages() const { return ram_bytes_ / kPageSize; }
  /// The size of the host's pages behind the RAM: no smaller part is mapped, protected or missing.
  uint64_t host_page_bytes() const { return host_page_bytes_; }
  /// The host address of the whole memory file, mapped in a row: the regions' hva lie in it.
  uint8_t* base() const { return base_; }
  int fd() const { return memfd_.get(); }

  /// True if the whole of [gpa, gpa + size) is RAM. Overflow-safe; an empty range at a RAM address
  /// is RAM.
  bool Contains(uint64_t gpa, uint64_t size) const { return Locate(gpa, size) != nullptr; }

  /// Copy out of or into the guest; false (and nothing copied) unless the whole range is RAM in one
  /// region.
  [[nodiscard]] bool Read(uint64_t gpa, void* buffer, size_t size) const;
  [[nodiscard]] bool Write(uint64_t gpa, const void* buffer, size_t size);
  [[nodiscard]] bool Zero(uint64_t gpa, size_t size);

  template <typename T>
  [[nodiscard]] std::optional<T> ReadObject(uint64_t gpa) const {
    static_assert(std::is_trivially_copyable_v<T>);
    T value;
    if (!Read(gpa, &value, sizeof(T))) return std::nullopt;
    return value;
  }
  template <typename T>
  [[nodiscard]] bool WriteObject(uint64_t gpa, const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    return Write(gpa, &value, sizeof(T));
  }

  /// The host address of [gpa, gpa + size), or nullptr unless it is RAM in one region. For *_unsafe
  /// files and for I/O into guest buffers; the caller marks what it (or the kernel on its behalf)
  /// writes.
  uint8_t* HostPointer(uint64_t gpa, uint64_t size) const;

  /// The first part of [gpa, gpa + size), which is RAM in one region, that the host has pages for;
  /// what lies before it was never touched and reads as zeroes. None: it is all so. Found without
  /// touching it, which would give it pages.
  std::optional<MemoryRange> NextBacked(uint64_t gpa, uint64_t size) const;
  /// The same of [offset, offset + size) of the memory file.
  struct FileRange {
    uint64_t offset;
    uint64_t size;
  };
  std::optional<FileRange> NextBackedInFile(uint64_t offset, uint64_t size) const;

  /// Maps guest pages in a row (see PageMapping). Refuses a page that is not RAM.
  Result<PageMapping> MapPages(std::span<const uint64_t> pfns);
  /// What MapPages does if the RAM has huge pages, of which no 4 KiB can be mapped by themselves.
  Result<PageMapping> FindPages(std::span<const uint64_t> pfns);
  /// Adds the pages that PageMappings have mapped: accesses there are not accesses at base().
  void AddMappedPages(PageSet* pages) const;
  /// Sets a function that is called with the host address of every page that is about to be mapped
  /// elsewhere, and fills in its content if that is still missing. Null: none.
  void SetBeforeMapping(std::function<void(uint64_t address)> before);

  /// Notes that the host wrote there. Cheap when tracking is off.
  void MarkDirty(uint64_t gpa, uint64_t size);
  /// Host-side dirty tracking, one bit a page of the memfd.
  void StartDirtyTracking();
  void StopDirtyTracking();
  /// Adds what the host wrote since the last call.
  void TakeDirtyPages(PageSet* pages);
  /// The same as page frame numbers of guest-physical addresses, ascending.
  std::vector<uint64_t> TakeDirtyPages();

 private:
  GuestMemory() = default;
  Result<void> SetRegions(std::span<const MemoryRange> ranges);
  Result<void> Map(int flags);
  const Region* Locate(uint64_t gpa, uint64_t size) const;
  Result<void> CheckPages(std::span<const uint64_t> pfns) const;
  friend class PageMapping;
  void CountMapped(std::span<const uint64_t> pfns, bool mapped);

  Fd memfd_;
  uint8_t* base_ = nullptr;  // all of the memfd, mapped once
  uint64_t ram_bytes_ = 0;
  uint64_t host_page_bytes_ = kPageSize;
  std::vector<Region> regions_;
  std::unique_ptr<std::atomic<uint64_t>[]> dirty_;  // allocated by the first StartDirtyTracking
  std::atomic<bool> tracking_{false};
  mutable std::mutex mapped_mutex_;                // guards the next two
  std::unordered_map<uint64_t, uint32_t> mapped_;  // mappings of a page of the file
  std::function<void(uint64_t)> before_mapping_;
};

}  // namespace kvmbus::vmm
