// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_space.h"

#include <iterator>

namespace kvmbus::virtdev::vhdx {

FreeSpace::FreeSpace(uint64_t block_length, std::span<const FileRange> used, uint64_t file_length)
    : block_length_(block_length) {
  uint64_t end = 0;
  for (const FileRange& range : used) {
    if (range.start > end) Insert(end, range.start - end);
    end = range.start + range.length;
  }
  if (file_length > end) Insert(end, file_length - end);
}

std::optional<uint64_t> FreeSpace::Take() {
  if (wide_.empty()) return std::nullopt;
  return TakeFront(gaps_.find(*wide_.begin()), block_length_);
}

std::optional<uint64_t> FreeSpace::TakeOne() {
  if (gaps_.empty()) return std::nullopt;
  return TakeFront(gaps_.find(narrow_.empty() ? *wide_.begin() : *narrow_.begin()), 1);
}

uint64_t FreeSpace::TakeFront(std::map<uint64_t, uint64_t>::iterator gap, uint64_t taken) {
  const auto [start, length] = *gap;
  Erase(gap);
  if (length > taken) Insert(start + taken, length - taken);
  return start;
}

void FreeSpace::Release(uint64_t start, uint64_t length) {
  const auto next = gaps_.lower_bound(start);
  if (next != gaps_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == start) {
      start = before->first;
      length += before->second;
      Erase(before);
    }
  }
  if (next != gaps_.end() && start + length == next->first) {
    length += next->second;
    Erase(next);
  }
  Insert(start, length);
}

uint64_t FreeSpace::EndOfUse(uint64_t file_length) const {
  if (gaps_.empty()) return file_length;
  const auto last = std::prev(gaps_.end());
  return last->first + last->second == file_length ? last->first : file_length;
}

vmm::Result<uint64_t> FreeSpace::CutFreeEnd(BlockFile& file, uint64_t file_bytes) {
  const uint64_t whole = file_bytes / kMiB;
  const uint64_t end = EndOfUse(whole);
  if (end == whole) return file_bytes;
  TRY_VOID_CTX(file.Resize(end * kMiB), "cutting off the image's free end");
  Erase(std::prev(gaps_.end()));
  return end * kMiB;
}

void FreeSpace::Insert(uint64_t start, uint64_t length) {
  gaps_.emplace(start, length);
  (length >= block_length_ ? wide_ : narrow_).insert(start);
}

void FreeSpace::Erase(std::map<uint64_t, uint64_t>::iterator gap) {
  wide_.erase(gap->first);
  narrow_.erase(gap->first);
  gaps_.erase(gap);
}

}  // namespace kvmbus::virtdev::vhdx
