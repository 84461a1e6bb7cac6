// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_log_writer.h"

#include <algorithm>
#include <vector>

#include "virtdev/disk/vhdx/vhdx_log.h"

namespace kvmbus::virtdev::vhdx {
namespace {

using vmm::Result;

void StorePage(const LogWriter::Page& page, uint64_t sequence, size_t descriptor_at, size_t data_at,
               std::span<uint8_t> bytes) {
  DataDescriptor descriptor = {};
  descriptor.signature = kDataDescriptorSignature;
  descriptor.trailing_bytes = Load<uint32_t>(page.content, kLogSector - sizeof(uint32_t));
  descriptor.leading_bytes = Load<uint64_t>(page.content, 0);
  descriptor.file_offset = page.file_offset;
  descriptor.sequence_number = sequence;
  Store(bytes, descriptor_at, descriptor);
  DataSector sector = {};
  sector.signature = kDataSectorSignature;
  sector.sequence_high = static_cast<uint32_t>(sequence >> 32);
  sector.sequence_low = static_cast<uint32_t>(sequence);
  std::memcpy(sector.data, page.content.data() + sizeof(uint64_t), sizeof(sector.data));
  Store(bytes, data_at, sector);
}

}  // namespace

bool LogWriter::HasRoom(size_t pages) const {
  const uint64_t used = (head_ + uint64_t{length_} - tail_) % length_;
  // One sector stays free: a full log would look like an empty one. One more is for an empty entry.
  const uint64_t kept = (pages == 0 ? 1 : 2) * kLogSector;
  return used + LogHeadBytes(pages) + pages * kLogSector + kept <= length_;
}

Result<void> LogWriter::Append(std::span<const Page> pages, uint64_t flushed_bytes,
                               uint64_t file_bytes) {
  KVMBUS_ASSERT(pages.size() <= kMaxPages && HasRoom(pages.size()));
  const uint64_t head = LogHeadBytes(pages.size());
  std::vector<uint8_t> bytes(head + pages.size() * kLogSector, 0);
  LogEntryHeader header = {};
  header.signature = kLogEntrySignature;
  header.entry_length = static_cast<uint32_t>(bytes.size());
  header.tail = live_.empty() ? head_ : live_.front().start;
  header.sequence_number = sequence_;
  header.descriptor_count = static_cast<uint32_t>(pages.size());
  header.log_guid = guid_;
  header.flushed_file_offset = flushed_bytes;
  header.last_file_offset = file_bytes;
  Store(bytes, 0, header);
  for (size_t i = 0; i < pages.size(); ++i)
    StorePage(pages[i], sequence_, sizeof(LogEntryHeader) + i * kLogDescriptorBytes,
              head + i * kLogSector, bytes);
  Store(bytes, 4, StructureChecksum(bytes));
  TRY_VOID_CTX(WriteEntry(bytes), "writing the log");
  live_.push_back({head_, pages.empty()});
  tail_ = header.tail;
  head_ = static_cast<uint32_t>((head_ + bytes.size()) % length_);
  ++sequence_;
  return {};
}

Result<void> LogWriter::WriteEntry(std::span<const uint8_t> bytes) {
  const uint64_t first = std::min<uint64_t>(bytes.size(), length_ - head_);
  TRY_VOID(file_.Write(bytes.first(first), offset_ + head_));
  if (first < bytes.size()) TRY_VOID(file_.Write(bytes.subspan(first), offset_));
  return {};
}

void LogWriter::Applied() {
  for (LiveEntry& entry : live_) entry.applied = true;
}

void LogWriter::Flushed() {
  while (!live_.empty() && live_.front().applied) live_.pop_front();
}

}  // namespace kvmbus::virtdev::vhdx
