// SPDX-License-Identifier: Apache-2.0
#include "vmm/hvs/key_table_reader.h"

#include <algorithm>

#include "vmm/text/utf16.h"

namespace kvmbus::vmm::hvs {
namespace {

Error Damage(std::string what) { return Error(Code::kDataLoss, std::move(what)); }

Result<std::string> ParseText(std::string_view bytes) {
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  auto text = Utf16ToUtf8({data, bytes.size()}, std::endian::little);
  if (!text) return Damage("its text is no UTF-16");
  return std::move(*text);
}

/// The bytes that a value of this type takes before any that are counted.
size_t FixedBytes(KeyType type, bool is_object) {
  if (is_object) return sizeof(ObjectPointer);
  switch (type) {
    case KeyType::kNode:
      return sizeof(NodeData);
    case KeyType::kInt:
    case KeyType::kUInt:
    case KeyType::kDouble:
      return 8;
    default:
      return 4;
  }
}

bool HasCount(KeyType type) { return type == KeyType::kString || type == KeyType::kArray; }

/// A name is shown to people, and comes from anybody.
bool IsName(std::string_view name) {
  return std::none_of(name.begin(), name.end(),
                      [](char c) { return static_cast<uint8_t>(c) < 0x20 || c == 0x7f; }) &&
         Utf8ToUtf16(name, std::endian::little);
}

bool IsKnown(KeyType type) { return type >= KeyType::kInt && type <= KeyType::kNode; }

/// What of an entry's data counts, without what is left over.
Result<std::string_view> MeaningfulData(const KeyEntry& header, std::string_view room) {
  const auto type = static_cast<KeyType>(header.type);
  const bool is_object = (header.flags & kKeyIsObject) != 0;
  size_t bytes = FixedBytes(type, is_object);
  if (room.size() < bytes) return Damage("it is too short for its value");
  if (HasCount(type) && !is_object) {
    const auto count = Load<uint32_t>(room, 0);
    if (count > room.size() - bytes) return Damage("its value is longer than it is");
    bytes += count;
  }
  return room.substr(0, bytes);
}

}  // namespace

Result<void> KeyTableReader::Add(std::string table, uint64_t file_offset) {
  if (table.size() < sizeof(KeyTableHeader))
    return MakeError(Code::kDataLoss, "the key table at {:#x} has {} bytes", file_offset,
                     table.size());
  const auto header = Load<KeyTableHeader>(table, 0);
  if (header.signature != kKeyTableSignature || header.index == 0 ||
      header.checksum != ChecksumOf(header))
    return MakeError(Code::kDataLoss, "the key table at {:#x} is damaged", file_offset);
  const uint16_t index = header.index;
  Table read{std::move(table), file_offset, header.sequence};
  const auto [known, is_new] = tables_.try_emplace(index, std::move(read));
  if (is_new) return {};
  if (known->second.sequence == header.sequence)
    return MakeError(Code::kDataLoss, "the key tables at {:#x} and {:#x} have the same index {}",
                     known->second.file_offset, file_offset, index);
  if (IsLater(header.sequence, known->second.sequence)) known->second = std::move(read);
  return {};
}

Result<Key> KeyTableReader::Build() {
  for (const auto& [index, table] : tables_)
    TRY_VOID_CTX(ParseTable(index, table), "key table {} at {:#x}", index, table.file_offset);
  std::stable_sort(entries_.begin(), entries_.end(), [this](const Entry& a, const Entry& b) {
    if (a.parent != b.parent) return a.parent < b.parent;
    return ordered_ && a.sequence < b.sequence;
  });
  Key root;
  root.children = TRY(TakeChildren(Place(), 1));
  if (taken_ != entries_.size())
    return MakeError(Code::kDataLoss, "{} of {} keys have no way up to the root",
                     entries_.size() - taken_, entries_.size());
  return root;
}

Result<void> KeyTableReader::ParseTable(uint16_t index, const Table& table) {
  const std::string_view bytes = table.bytes;
  // A gap of this size at the end is none.
  for (size_t at = sizeof(KeyTableHeader); at + sizeof(KeyEntry) < bytes.size();) {
    const auto header = Load<KeyEntry>(bytes, at);
    if (header.size < sizeof(KeyEntry) || header.size > bytes.size() - at)
      return MakeError(Code::kDataLoss, "the entry at {:#x} has {} bytes", at,
                       uint32_t{header.size});
    if (header.type != static_cast<uint8_t>(KeyType::kFree)) {
      Entry entry =
          TRY_CTX(ParseEntry(header, bytes.substr(at, header.size)), "the entry at {:#x}", at);
      entry.place = {index, static_cast<uint32_t>(at)};
      entries_.push_back(std::move(entry));
    }
    at += header.size;
  }
  return {};
}

Result<KeyTableReader::Entry> KeyTableReader::ParseEntry(const KeyEntry& header,
                                                         std::string_view bytes) const {
  if (!IsKnown(static_cast<KeyType>(header.type)))
    return MakeError(Code::kDataLoss, "its type {} is unknown", header.type);
  bytes.remove_prefix(sizeof(KeyEntry));
  if (header.name_size < 2 || header.name_size > bytes.size() ||
      bytes.substr(0, header.name_size).find('\0') != header.name_size - 1u)
    return Damage("its name has no end, or is empty");
  if (!IsName(bytes.substr(0, header.name_size - 1u)))
    return Damage("its name is no UTF-8, or has control characters");
  const std::string_view data = TRY(MeaningfulData(header, bytes.substr(header.name_size)));
  KeyEntry unsigned_header = header;
  unsigned_header.checksum = 0;
  const std::string_view covered = bytes.substr(0, header.name_size + data.size());
  if (Crc32(covered, Crc32(BytesOf(unsigned_header))) != header.checksum)
    return Damage("its checksum is wrong");
  Entry entry;
  entry.key.name = bytes.substr(0, header.name_size - 1u);
  entry.key.value = TRY_CTX(ParseValue(header, data), "key '{}'", entry.key.name);
  entry.parent = {header.parent_table, header.parent_offset};
  if (entry.parent.table == 0 && entry.parent.offset != 0)
    return MakeError(Code::kDataLoss, "key '{}' has no parent", entry.key.name);
  entry.sequence = header.insertion_sequence;
  return entry;
}

Result<Key::Value> KeyTableReader::ParseValue(const KeyEntry& header, std::string_view data) const {
  const auto type = static_cast<KeyType>(header.type);
  if ((header.flags & kKeyIsObject) != 0) return ParsePointer(type, data);
  return ParseInline(type, HasCount(type) ? data.substr(sizeof(uint32_t)) : data);
}

/// `data`: without a count.
Result<Key::Value> KeyTableReader::ParseInline(KeyType type, std::string_view data) const {
  if (!HasCount(type) && data.size() != FixedBytes(type, false))
    return MakeError(Code::kDataLoss, "its value has {} bytes", data.size());
  switch (type) {
    case KeyType::kInt:
      return Key::Value(Load<int64_t>(data, 0));
    case KeyType::kUInt:
      return Key::Value(Load<uint64_t>(data, 0));
    case KeyType::kDouble:
      return Key::Value(Load<double>(data, 0));
    case KeyType::kBool:
      return Key::Value(Load<uint32_t>(data, 0) != 0);
    case KeyType::kString:
      return Key::Value(TRY(ParseText(data)));
    case KeyType::kArray:
      return Key::Value(KeyBytes{std::string(data)});
    default:
      return Key::Value();
  }
}

Result<Key::Value> KeyTableReader::ParsePointer(KeyType type, std::string_view data) const {
  if (type == KeyType::kNode) return Damage("a node cannot be an object");
  const auto pointer = Load<ObjectPointer>(data, 0);
  const FileObject object{pointer.offset, pointer.size};
  const auto bytes = TRY(read_object_(object));
  if (!bytes) return Key::Value(object);
  return ParseInline(type, *bytes);
}

/// The entries below `parent`, which have not been taken before: each has one parent.
Result<std::vector<Key>> KeyTableReader::TakeChildren(const Place& parent, uint32_t depth) {
  const auto first =
      std::lower_bound(entries_.begin(), entries_.end(), parent,
                       [](const Entry& entry, const Place& place) { return entry.parent < place; });
  std::vector<Key> children;
  for (auto at = first; at != entries_.end() && at->parent == parent; ++at) {
    if (depth > kMaxDepth)
      return MakeError(Code::kDataLoss, "keys lie more than {} deep", kMaxDepth);
    ++taken_;
    if (at->key.is_node()) at->key.children = TRY(TakeChildren(at->place, depth + 1));
    children.push_back(std::move(at->key));
  }
  return children;
}

}  // namespace kvmbus::vmm::hvs
