// SPDX-License-Identifier: Apache-2.0
#include "virtdev/scsi/guest_buffer_unsafe.h"

#include <algorithm>
#include <cstring>

#include "vmm/result/result.h"

namespace kvmbus::virtdev {

void GuestBuffer::Clear() {
  memory_ = nullptr;
  iov_.clear();
  gpas_.clear();
  size_ = 0;
}

void GuestBuffer::AppendSegment(uint8_t* host, uint64_t gpa, size_t bytes) {
  if (!iov_.empty()) {
    iovec& last = iov_.back();
    const bool follows = static_cast<uint8_t*>(last.iov_base) + last.iov_len == host;
    // Guest pages merge only within a region: MarkDirty takes no range that crosses two.
    const bool same_kind = gpa == kNoGpa
                               ? gpas_.back() == kNoGpa
                               : gpas_.back() + last.iov_len == gpa &&
                                     memory_->Contains(gpas_.back(), last.iov_len + bytes);
    if (follows && same_kind) {
      last.iov_len += bytes;
      size_ += bytes;
      return;
    }
  }
  iov_.push_back({host, bytes});
  gpas_.push_back(gpa);
  size_ += bytes;
}

bool GuestBuffer::AppendPages(vmm::GuestMemory& memory, std::span<const uint64_t> pfns,
                              uint32_t offset, uint32_t bytes) {
  KVMBUS_ASSERT(memory_ == nullptr || memory_ == &memory);
  const uint64_t pages = (uint64_t{offset} + bytes + vmm::kPageSize - 1) >> vmm::kPageShift;
  if (offset >= vmm::kPageSize || pages > pfns.size()) return false;
  constexpr uint64_t kMaxPfn = ~uint64_t{0} >> vmm::kPageShift;
  for (const uint64_t pfn : pfns.first(pages)) {
    if (pfn > kMaxPfn || !memory.Contains(pfn << vmm::kPageShift, vmm::kPageSize)) return false;
  }
  memory_ = &memory;
  uint64_t rest = bytes;
  uint64_t in_page = offset;
  for (const uint64_t pfn : pfns.first(pages)) {
    const uint64_t take = std::min(rest, vmm::kPageSize - in_page);
    const uint64_t gpa = (pfn << vmm::kPageShift) + in_page;
    // SAFETY: the page was checked to be RAM just above, regions never go away, and `take` ends
    // within the page.
    AppendSegment(memory.HostPointer(gpa, take), gpa, take);
    rest -= take;
    in_page = 0;
  }
  return true;
}

bool GuestBuffer::AppendRange(vmm::GuestMemory& memory, uint64_t gpa, uint64_t bytes) {
  KVMBUS_ASSERT(memory_ == nullptr || memory_ == &memory);
  // SAFETY: the range is RAM in one region or the pointer is null; regions never go away.
  uint8_t* host = memory.HostPointer(gpa, bytes);
  if (host == nullptr) return false;
  memory_ = &memory;
  if (bytes != 0) AppendSegment(host, gpa, bytes);
  return true;
}

void GuestBuffer::AppendHost(std::span<uint8_t> bytes) {
  if (!bytes.empty()) AppendSegment(bytes.data(), kNoGpa, bytes.size());
}

void GuestBuffer::Truncate(uint64_t bytes) {
  while (size_ > bytes) {
    iovec& last = iov_.back();
    const uint64_t excess = size_ - bytes;
    if (last.iov_len > excess) {
      last.iov_len -= excess;
      size_ -= excess;
      return;
    }
    size_ -= last.iov_len;
    iov_.pop_back();
    gpas_.pop_back();
  }
}

template <typename Visit>
size_t GuestBuffer::ForEachPiece(uint64_t offset, size_t bytes, Visit visit) const {
  size_t done = 0;
  for (size_t i = 0; i < iov_.size() && done < bytes; ++i) {
    if (offset >= iov_[i].iov_len) {
      offset -= iov_[i].iov_len;
      continue;
    }
    const size_t take = std::min<uint64_t>(bytes - done, iov_[i].iov_len - offset);
    uint8_t* host = static_cast<uint8_t*>(iov_[i].iov_base) + offset;
    if (!visit(host, gpas_[i] == kNoGpa ? kNoGpa : gpas_[i] + offset, done, take)) return done;
    done += take;
    offset = 0;
  }
  return done;
}

size_t GuestBuffer::CopyIn(uint64_t offset, std::span<uint8_t> to) const {
  // SAFETY: the pieces lie within the iovecs, which are guest RAM or the submitter's memory; each
  // byte is read once.
  return ForEachPiece(offset, to.size(), [&](uint8_t* host, uint64_t, size_t at, size_t bytes) {
    std::memcpy(&to[at], host, bytes);
    return true;
  });
}

size_t GuestBuffer::CopyOut(uint64_t offset, std::span<const uint8_t> from) {
  // SAFETY: as in CopyIn; what was written is marked at once.
  return ForEachPiece(offset, from.size(),
                      [&](uint8_t* host, uint64_t gpa, size_t at, size_t bytes) {
                        std::memcpy(host, &from[at], bytes);
                        if (memory_ != nullptr && gpa != kNoGpa) memory_->MarkDirty(gpa, bytes);
                        return true;
                      });
}

bool GuestBuffer::Equals(uint64_t offset, std::span<const uint8_t> expected) const {
  // SAFETY: as in CopyIn; a guest that changes the bytes meanwhile changes its own answer alone.
  return ForEachPiece(offset, expected.size(),
                      [&](uint8_t* host, uint64_t, size_t at, size_t bytes) {
                        return std::memcmp(&expected[at], host, bytes) == 0;
                      }) == expected.size();
}

void GuestBuffer::MarkDirty(uint64_t bytes) {
  if (memory_ == nullptr) return;
  (void)ForEachPiece(0, bytes, [&](uint8_t*, uint64_t gpa, size_t, size_t piece) {
    if (gpa != kNoGpa) memory_->MarkDirty(gpa, piece);
    return true;
  });
}

}  // namespace kvmbus::virtdev
