// SPDX-License-Identifier: Apache-2.0
#include "vmm/hvs/hvs_file_view.h"

#include <algorithm>
#include <optional>

#include "vmm/os/fd.h"
#include "vmm/os/file.h"

namespace kvmbus::vmm::hvs {
namespace {

constexpr uint32_t kMaxLogHeaderBytes = 256 << 10;
constexpr uint64_t kMaxLogBytes = 64 << 20;

struct ReplayEntry {
  uint64_t destination, offset;
  uint32_t size, data_checksum;
};

template <typename T>
std::optional<ReplayEntry> ParseEntryAs(std::string_view bytes) {
  const auto entry = Load<T>(bytes, 0);
  if (entry.checksum != ChecksumOf(entry)) return std::nullopt;
  return ReplayEntry{entry.destination, entry.offset, entry.size, entry.data_checksum};
}

std::optional<ReplayEntry> ParseEntry(std::string_view bytes) {
  const auto entry = ParseEntryAs<ReplayEntryChecksumFirst>(bytes);
  return entry ? entry : ParseEntryAs<ReplayEntryChecksumLast>(bytes);
}

}  // namespace

Result<FileView> FileView::Open(int fd) {
  FileView view(fd, TRY(FileSize(fd)));
  TRY_VOID(view.ChooseHeader());
  TRY_VOID(view.ApplyReplayLog());
  return view;
}

Result<void> FileView::ChooseHeader() {
  if (file_size_ < kRootTableOffset)
    return MakeError(Code::kDataLoss, "it has {} bytes; its headers alone have {}", file_size_,
                     kRootTableOffset);
  std::optional<Header> copies[2];
  for (const int copy : {0, 1}) {
    const std::string bytes = TRY(ReadFile(kHeaderOffset[copy], sizeof(Header)));
    const auto header = Load<Header>(bytes, 0);
    if (header.signature == kHeaderSignature && header.checksum == ChecksumOf(header))
      copies[copy] = header;
  }
  if (!copies[0] && !copies[1]) return Error(Code::kDataLoss, "both headers are damaged");
  if (copies[0] && copies[1] && copies[0]->sequence == copies[1]->sequence)
    return MakeError(Code::kDataLoss, "both headers have the sequence {}",
                     uint16_t{copies[0]->sequence});
  const bool first = copies[0] && (!copies[1] || IsLater(copies[0]->sequence, copies[1]->sequence));
  header_ = first ? *copies[0] : *copies[1];
  if (header_.format_version < kOldestVersion || header_.format_version > kVersion)
    return MakeError(Code::kUnimplemented, "format version {:#x}; known are {:#x} to {:#x}",
                     uint32_t{header_.format_version}, kOldestVersion, kVersion);
  return {};
}

Result<void> FileView::ApplyReplayLog() {
  const uint64_t start = header_.replay_log_offset, length = header_.replay_log_size;
  const uint32_t header_bytes = header_.replay_log_header_size;
  if (length > kMaxLogBytes || header_bytes > std::min<uint64_t>(length, kMaxLogHeaderBytes) ||
      header_bytes < sizeof(ReplayLogHeader) || !Holds(start, length))
    return MakeError(Code::kDataLoss, "{:#x}+{:#x} is no place for a replay log", start, length);
  const std::string head = TRY(ReadFile(start, header_bytes));
  const auto log = Load<ReplayLogHeader>(head, 0);
  if (log.signature != kReplayLogSignature || log.checksum != ChecksumOf(log))
    return MakeError(Code::kDataLoss, "the replay log at {:#x} is damaged", start);
  if (log.current_entries == 0) return {};
  constexpr size_t kEntry = sizeof(ReplayEntryChecksumFirst);
  if (log.current_entries > (header_bytes - sizeof(log)) / kEntry)
    return MakeError(Code::kDataLoss, "the replay log has {} entries, there is room for {}",
                     uint32_t{log.current_entries}, (header_bytes - sizeof(log)) / kEntry);
  uint64_t left = length;  // what entries say twice is said by nobody but an attacker
  for (uint32_t i = 0; i < log.current_entries; ++i) {
    const auto entry = ParseEntry(std::string_view(head).substr(sizeof(log) + i * kEntry, kEntry));
    if (!entry) return MakeError(Code::kDataLoss, "entry {} of the replay log is damaged", i);
    if (entry->size > left || entry->offset > length || entry->size > length - entry->offset ||
        !Holds(entry->destination, entry->size))
      return MakeError(Code::kDataLoss, "entry {} of the replay log lies outside of it", i);
    left -= entry->size;
    const std::string data = TRY(ReadFile(start + entry->offset, entry->size));
    if (Crc32(data) != entry->data_checksum)
      return MakeError(Code::kDataLoss, "the data of entry {} of the replay log are damaged", i);
    TRY_VOID(Patch(entry->destination, data));
  }
  return {};
}

Result<void> FileView::Patch(uint64_t offset, std::string_view bytes) {
  while (!bytes.empty()) {
    const uint64_t number = offset / kPage, within = offset % kPage;
    auto page = pages_.find(number);
    if (page == pages_.end())
      page = pages_.emplace(number, TRY(ReadFile(number * kPage, kPage))).first;
    const size_t count = std::min<size_t>(bytes.size(), kPage - within);
    page->second.replace(within, count, bytes.substr(0, count));
    bytes.remove_prefix(count);
    offset += count;
  }
  return {};
}

/// Zeroes past the end of the file.
Result<std::string> FileView::ReadFile(uint64_t offset, uint64_t length) const {
  if (!Holds(offset, length))
    return MakeError(Code::kDataLoss, "{:#x}+{:#x} lies past the end of the file ({} bytes)",
                     offset, length, file_size_);
  std::string bytes(length, '\0');
  if (offset >= file_size_) return bytes;
  const uint64_t there = std::min(length, file_size_ - offset);
  TRY_VOID_CTX(PReadAll(fd_, {reinterpret_cast<uint8_t*>(bytes.data()), there}, offset),
               "reading {:#x}+{:#x}", offset, there);
  return bytes;
}

Result<std::string> FileView::Read(uint64_t offset, uint64_t length) const {
  std::string bytes = TRY(ReadFile(offset, length));
  for (auto page = pages_.lower_bound(offset / kPage);
       page != pages_.end() && page->first * kPage < offset + length; ++page) {
    const uint64_t start = std::max(offset, page->first * kPage);
    const uint64_t end = std::min(offset + length, (page->first + 1) * kPage);
    bytes.replace(start - offset, end - start,
                  std::string_view(page->second).substr(start % kPage, end - start));
  }
  return bytes;
}

}  // namespace kvmbus::vmm::hvs
