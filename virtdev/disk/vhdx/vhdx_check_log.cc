// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_check_log.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

namespace kvmbus::virtdev::check {
namespace {

using namespace vhdx;

constexpr uint64_t kPage = 4096;

struct Entry {
  uint64_t place = 0;
  LogEntryHeader header{};
  std::vector<uint8_t> descriptors;  // in a row
  uint64_t length() const { return header.entry_length; }
};

class Log {
 public:
  Log(View* view, const Header& header) : view_(*view), header_(header) {}

  /// Valid entries by place; those that overlap are all kept, the chains tell them apart.
  std::map<uint64_t, Entry> Entries() {
    std::map<uint64_t, Entry> entries;
    for (uint64_t place = 0; place < header_.log_length; place += kPage) {
      if (auto entry = Parse(place)) entries.emplace(place, std::move(*entry));
    }
    return entries;
  }

  void Apply(const Entry& entry) {
    uint64_t data = entry.place + entry.length() - DataSectors(entry) * kPage;
    for (uint32_t i = 0; i < entry.header.descriptor_count; ++i) {
      const auto descriptor = Load<DataDescriptor>(entry.descriptors, size_t{i} * 32);
      if (descriptor.signature == kZeroDescriptorSignature) {
        const auto zero = Load<ZeroDescriptor>(entry.descriptors, size_t{i} * 32);
        view_.Lay(zero.file_offset, zero.zero_length, {});
        continue;
      }
      std::vector<uint8_t> page = Sector(data);
      data += kPage;
      std::memcpy(page.data(), &descriptor.leading_bytes, 8);
      std::memcpy(page.data() + 4092, &descriptor.trailing_bytes, 4);
      view_.Lay(descriptor.file_offset, kPage, std::move(page));
    }
    view_.Grow(entry.header.last_file_offset);
  }

 private:
  std::vector<uint8_t> Sector(uint64_t place) {
    return view_.Get(header_.log_offset + place % header_.log_length, kPage);
  }

  static uint64_t DataSectors(const Entry& entry) {
    uint64_t count = 0;
    for (uint32_t i = 0; i < entry.header.descriptor_count; ++i)
      count += Load<uint32_t>(entry.descriptors, size_t{i} * 32) == kDataDescriptorSignature;
    return count;
  }

  std::optional<Entry> Parse(uint64_t place) {
    Entry entry;
    entry.place = place;
    entry.header = Load<LogEntryHeader>(
        view_.Get(header_.log_offset + place % header_.log_length, sizeof(LogEntryHeader)), 0);
    const LogEntryHeader& h = entry.header;
    if (h.signature != kLogEntrySignature || h.log_guid != header_.log_guid ||
        h.sequence_number == 0 || h.entry_length < kPage || h.entry_length % kPage != 0 ||
        h.entry_length > header_.log_length || h.tail % kPage != 0 || h.tail >= header_.log_length)
      return std::nullopt;
    const uint64_t head = (64 + uint64_t{h.descriptor_count} * 32 + kPage - 1) / kPage * kPage;
    if (head > h.entry_length) return std::nullopt;
    // Another entry's start within this one means that one of the two is old; the sum tells.
    std::vector<uint8_t> all;
    for (uint64_t at = 0; at < h.entry_length; at += kPage) {
      const auto sector = Sector(place + at);
      if (at != 0 && Load<uint32_t>(sector, 0) == kLogEntrySignature) return std::nullopt;
      all.insert(all.end(), sector.begin(), sector.end());
    }
    if (SlowChecksum(all) != h.checksum) return std::nullopt;
    entry.descriptors.assign(all.begin() + 64,
                             all.begin() + 64 + static_cast<ptrdiff_t>(h.descriptor_count) * 32);
    return BodyIsValid(entry, all, head) ? std::optional(std::move(entry)) : std::nullopt;
  }

  bool BodyIsValid(const Entry& entry, std::span<const uint8_t> all, uint64_t head) const {
    const LogEntryHeader& h = entry.header;
    if (head + DataSectors(entry) * kPage != h.entry_length) return false;
    for (uint32_t i = 0; i < h.descriptor_count; ++i) {
      const auto d = Load<DataDescriptor>(entry.descriptors, size_t{i} * 32);
      const bool zero = d.signature == kZeroDescriptorSignature;
      if ((!zero && d.signature != kDataDescriptorSignature) ||
          d.sequence_number != h.sequence_number)
        return false;
      const uint64_t length = zero ? d.leading_bytes : kPage;  // the same place in both kinds
      const uint64_t end = d.file_offset + length;
      if (d.file_offset < 0x30000 || d.file_offset % kPage != 0 || length % kPage != 0 ||
          end < d.file_offset || end > h.last_file_offset ||
          (d.file_offset < header_.log_offset + header_.log_length && end > header_.log_offset))
        return false;
    }
    for (uint64_t at = head; at < h.entry_length; at += kPage) {
      if (Load<uint32_t>(all, at) != kDataSectorSignature ||
          Load<uint32_t>(all, at + 4) != static_cast<uint32_t>(h.sequence_number >> 32) ||
          Load<uint32_t>(all, at + 4092) != static_cast<uint32_t>(h.sequence_number))
        return false;
    }
    return true;
  }

  View& view_;
  const Header& header_;
};

}  // namespace

uint32_t SlowChecksum(std::span<const uint8_t> bytes) {
  struct Table {
    uint32_t of[256];
  };
  static const Table table = [] {
    Table t{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = value & 1 ? value >> 1 ^ 0x82f63b78 : value >> 1;
      t.of[i] = value;
    }
    return t;
  }();
  static constexpr uint8_t kNoChecksum[4] = {};
  uint32_t crc = ~0u;
  const auto add = [&crc](const uint8_t* byte, size_t count) KVMBUS_NO_COVERAGE {
    for (; count != 0; ++byte, --count) crc = crc >> 8 ^ table.of[(crc ^ *byte) & 0xff];
  };
  add(bytes.data(), 4);
  add(kNoChecksum, 4);
  add(bytes.data() + 8, bytes.size() - 8);
  return ~crc;
}

std::vector<uint8_t> View::Get(uint64_t offset, uint64_t length) {
  std::vector<uint8_t> bytes(length, 0);
  if (offset > size_ || length > size_ - offset) {
    failed_ = true;
    return bytes;
  }
  const uint64_t stored =
      offset >= file_size_ ? 0 : std::min<uint64_t>(length, file_size_ - offset);
  if (stored != 0 && !file_.Read(std::span(bytes).first(stored), offset).ok()) failed_ = true;
  for (const Write& write : writes_) {
    const uint64_t first = std::max(offset, write.offset);
    const uint64_t end = std::min(offset + length, write.offset + write.length);
    if (first >= end) continue;
    const auto to = bytes.begin() + static_cast<ptrdiff_t>(first - offset);
    if (write.page.empty())
      std::fill_n(to, end - first, 0);
    else
      std::copy_n(write.page.begin() + static_cast<ptrdiff_t>(first - write.offset), end - first,
                  to);
  }
  return bytes;
}

LogVerdict ReplayOver(View* view, const Header& header) {
  Log log(view, header);
  const std::map<uint64_t, Entry> entries = log.Entries();
  const auto follower = [&](const Entry& entry) -> const Entry* {
    const auto next = entries.find((entry.place + entry.length()) % header.log_length);
    if (next == entries.end() ||
        next->second.header.sequence_number != entry.header.sequence_number + 1)
      return nullptr;
    return &next->second;
  };
  std::set<uint64_t> followers;
  for (const auto& [place, entry] : entries) {
    if (const Entry* next = follower(entry)) followers.insert(next->place);
  }
  std::vector<const Entry*> best;
  for (const auto& [place, entry] : entries) {
    if (followers.count(place) != 0) continue;  // not the start of a chain
    std::vector<const Entry*> chain;
    for (const Entry* at = &entry; at != nullptr; at = follower(*at)) chain.push_back(at);
    const auto tail = std::find_if(chain.begin(), chain.end(), [&chain](const Entry* candidate) {
      return candidate->place == chain.back()->header.tail;
    });
    if (tail == chain.end()) continue;
    uint64_t bytes = 0;
    for (auto at = tail; at != chain.end(); ++at) bytes += (*at)->length();
    if (bytes > header.log_length) continue;
    if (best.empty() || chain.back()->header.sequence_number > best.back()->header.sequence_number)
      best.assign(tail, chain.end());
  }
  if (best.empty()) return {};
  for (const Entry* entry : best) log.Apply(*entry);
  return {best.size(), best.back()->header.sequence_number,
          best.back()->header.flushed_file_offset};
}

}  // namespace kvmbus::virtdev::check
