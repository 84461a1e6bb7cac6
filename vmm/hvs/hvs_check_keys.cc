// SPDX-License-Identifier: Apache-2.0
#include "vmm/hvs/hvs_check_keys.h"

#include <fmt/format.h>

#include <array>

#include "vmm/text/utf16.h"

namespace kvmbus::vmm::hvs_check {
namespace {

constexpr uint64_t kFree = 1, kInt = 3, kDouble = 5, kString = 6, kArray = 7, kBool = 8, kNode = 9;
constexpr size_t kTableHeader = 10, kEntryHeader = 21;

constexpr auto kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    table[i] = i;
    for (int bit = 0; bit < 8; ++bit)
      table[i] = table[i] >> 1 ^ ((table[i] & 1) != 0 ? 0xedb88320u : 0);
  }
  return table;
}();

}  // namespace

uint32_t OwnCrc32(std::string_view bytes) {
  uint32_t crc = ~0u;
  for (const char byte : bytes)
    crc = crc >> 8 ^ kCrcTable[(crc ^ static_cast<uint8_t>(byte)) & 0xff];
  return ~crc;
}

uint32_t OwnCrc32Without(std::string bytes, size_t field) {
  bytes.replace(field, 4, 4, '\0');
  return OwnCrc32(bytes);
}

uint64_t Number(std::string_view bytes, size_t at, size_t width) {
  uint64_t value = 0;
  for (size_t i = width; i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[at + i]);
  return value;
}

void Keys::AddTable(const std::string& bytes, uint64_t file_offset) {
  std::string where = fmt::format("key table at {:#x}", file_offset);
  if (bytes.size() < kTableHeader) return fail_(where, "it has no room for its header");
  const uint64_t index = Number(bytes, 2, 2);
  where = fmt::format("key table {} at {:#x}", index, file_offset);
  if (Number(bytes, 0, 2) != 2) return fail_(where, "it has another signature");
  if (Number(bytes, 6, 4) != OwnCrc32Without(bytes.substr(0, kTableHeader), 6))
    fail_(where, "the checksum of its header is wrong");
  if (index == 0) fail_(where, "indexes begin with 1");
  if (!indexes_.insert(index).second) return fail_(where, "another table has its index");
  size_t at = kTableHeader;
  while (at + kEntryHeader < bytes.size()) {
    const std::string entry = fmt::format("{}, entry at {:#x}", where, at);
    const uint64_t size = Number(bytes, at + 2, 4);
    if (size < kEntryHeader || size > bytes.size() - at)
      return fail_(entry, fmt::format("its size is {}", size));
    Entry(entry, {index, at}, std::string_view(bytes).substr(at, size));
    at += size;
  }
  if (at != bytes.size())
    fail_(where, fmt::format("its last {} bytes are nobody's", bytes.size() - at));
}

void Keys::Entry(const std::string& where, Place place, std::string_view bytes) {
  const uint64_t type = Number(bytes, 0, 1), flags = Number(bytes, 1, 1);
  if (type == kFree) {
    if (Number(bytes, 12, 4) != 0) fail_(where, "it is free and has a checksum");
    return;
  }
  if (type < kInt || type > kNode) return fail_(where, fmt::format("its type is {}", type));
  if ((flags & ~7u) != 0) fail_(where, fmt::format("its flags are {:#x}", flags));
  const uint64_t name_size = Number(bytes, 20, 1);
  const std::string_view rest = bytes.substr(kEntryHeader);
  if (name_size < 2 || name_size > rest.size() || rest.find('\0') != name_size - 1)
    return fail_(where, "its name is empty or does not end where it should");
  Seen seen;
  seen.name = rest.substr(0, name_size - 1);
  if (!Utf8ToUtf16(seen.name, std::endian::little)) fail_(where, "its name is no UTF-8");
  for (const char c : seen.name) {
    if (static_cast<uint8_t>(c) < 0x20) fail_(where, "its name has control characters");
  }
  const std::string_view data = rest.substr(name_size);
  const auto used = Value(where, type, (flags & 1) != 0, data);
  if (!used) return fail_(where, "it is too short for its value");
  const size_t covered = kEntryHeader + name_size + *used;
  if (Number(bytes, 12, 4) != OwnCrc32Without(std::string(bytes.substr(0, covered)), 12))
    fail_(where, "its checksum is wrong");
  if (data.size() - *used > kEntryHeader)
    fail_(where, fmt::format("{} bytes are left over in it", data.size() - *used));
  seen.parent = {Number(bytes, 6, 2), Number(bytes, 8, 4)};
  seen.sequence = Number(bytes, 16, 4);
  seen.is_node = type == kNode;
  seen.next_sequence = seen.is_node ? Number(data, 8, 4) : 0;
  seen.where = where;
  entries_.emplace(place, std::move(seen));
}

/// How many bytes of `data` the value takes.
std::optional<size_t> Keys::Value(const std::string& where, uint64_t type, bool is_object,
                                  std::string_view data) {
  if (is_object) {
    if (data.size() < 12) return std::nullopt;
    Object(where, data);
    if (type == kNode) fail_(where, "a node cannot be an object");
    return 12;
  }
  size_t used = type <= kDouble ? 8 : type == kNode ? 12 : 4;
  if (data.size() < used) return std::nullopt;
  if (type == kBool && Number(data, 0, 4) > 1) fail_(where, "it is neither true nor false");
  if (type != kString && type != kArray) return used;
  const uint64_t count = Number(data, 0, 4);
  if (count > data.size() - used) return std::nullopt;
  if (count >= 2048) fail_(where, fmt::format("{} bytes should be an object", count));
  if (type == kString) Text(where, data.substr(used, count));
  return used + count;
}

void Keys::Text(const std::string& where, std::string_view bytes) {
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  if (!Utf16ToUtf8({data, bytes.size()}, std::endian::little))
    return fail_(where, "its text is no UTF-16");
  for (size_t at = 0; at + 1 < bytes.size(); at += 2) {
    if (Number(bytes, at, 2) == 0) return fail_(where, "its text has a NUL");
  }
}

void Keys::Object(const std::string& where, std::string_view pointer) {
  const uint64_t size = Number(pointer, 0, 4), offset = Number(pointer, 4, 8);
  const auto at = objects_.find(offset);
  if (at == objects_.end())
    return fail_(where, fmt::format("no object table has its object at {:#x}", offset));
  if (size == 0 || size > at->second)
    fail_(where, fmt::format("its {} bytes do not fit into an object of {}", size, at->second));
  if (!used_objects_.insert(offset).second)
    fail_(where, fmt::format("another key has its object at {:#x}", offset));
}

void Keys::Finish() {
  if (!indexes_.empty() && *indexes_.rbegin() != indexes_.size())
    fail_("key tables",
          fmt::format("{} tables have indexes up to {}", indexes_.size(), *indexes_.rbegin()));
  Parents();
  Sequences();
}

void Keys::Parents() {
  for (const auto& [place, entry] : entries_) {
    if (entry.parent == Place()) continue;
    const auto parent = entries_.find(entry.parent);
    if (parent == entries_.end())
      fail_(entry.where, fmt::format("there is no entry where its parent should be ({}, {:#x})",
                                     entry.parent.first, entry.parent.second));
    else if (!parent->second.is_node)
      fail_(entry.where, fmt::format("its parent '{}' is no node", parent->second.name));
    else if (entry.parent >= place)
      fail_(entry.where, fmt::format("its parent '{}' comes after it", parent->second.name));
  }
}

void Keys::Sequences() {
  std::map<Place, std::set<uint64_t>> sequences;
  for (const auto& [place, entry] : entries_) {
    if (entry.sequence == 0) fail_(entry.where, "it has no insertion sequence");
    if (!sequences[entry.parent].insert(entry.sequence).second)
      fail_(entry.where, fmt::format("a sibling has its insertion sequence {}", entry.sequence));
  }
  for (const auto& [place, entry] : entries_) {
    if (!entry.is_node) continue;
    const auto children = sequences.find(place);
    const uint64_t last = children == sequences.end() ? 0 : *children->second.rbegin();
    if (entry.next_sequence != last + 1)
      fail_(entry.where, fmt::format("its next insertion sequence is {} and should be {}",
                                     entry.next_sequence, last + 1));
  }
}

}  // namespace kvmbus::vmm::hvs_check
