// SPDX-License-Identifier: Apache-2.0
#include "vmm/hvs/hvs_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "vmm/os/fd.h"
#include "vmm/text/utf16.h"

namespace kvmbus::vmm {
namespace {

using hvs::KeyType;

Result<void> Write(int fd, std::string_view bytes, uint64_t offset) {
  return PWriteAll(fd, {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, offset);
}

/// A value as its entry or its object has it, without the count of its bytes.
struct Encoded {
  KeyType type;
  std::string bytes;
  bool counted = false;  ///< an entry has the count before the bytes
};

struct Encoder {
  Result<Encoded> operator()(std::monostate) const {
    hvs::NodeData node = {};
    node.next_insertion_sequence = static_cast<uint32_t>(key.children.size() + 1);
    return Encoded{KeyType::kNode, std::string(hvs::BytesOf(node))};
  }
  Result<Encoded> operator()(int64_t value) const {
    return Encoded{KeyType::kInt, std::string(hvs::BytesOf(value))};
  }
  Result<Encoded> operator()(uint64_t value) const {
    return Encoded{KeyType::kUInt, std::string(hvs::BytesOf(value))};
  }
  Result<Encoded> operator()(double value) const {
    return Encoded{KeyType::kDouble, std::string(hvs::BytesOf(value))};
  }
  Result<Encoded> operator()(bool value) const {
    return Encoded{KeyType::kBool, std::string(hvs::BytesOf(uint32_t{value}))};
  }
  Result<Encoded> operator()(const std::string& value) const {
    const auto wide = Utf8ToUtf16(value, std::endian::little);
    if (!wide)
      return MakeError(Code::kInvalidArgument, "the text of key '{}' is no UTF-8", key.name);
    return Encoded{KeyType::kString, std::string(wide->begin(), wide->end()), true};
  }
  Result<Encoded> operator()(const KeyBytes& value) const {
    return Encoded{KeyType::kArray, value.bytes, true};
  }
  Result<Encoded> operator()(const FileObject&) const { return Encoded{KeyType::kArray, ""}; }

  const Key& key;
};

std::string PointerTo(const FileObject& object) {
  return std::string(hvs::BytesOf(hvs::ObjectPointer{object.size, object.offset}));
}

hvs::ObjectEntry ObjectEntryOf(hvs::ObjectType type, uint64_t offset, uint64_t size) {
  hvs::ObjectEntry entry = {};
  entry.type = static_cast<uint8_t>(type);
  entry.offset = offset;
  entry.size = static_cast<uint32_t>(hvs::AlignUp(size, hvs::kAlignment));
  if (type != hvs::ObjectType::kEmpty) entry.flags = hvs::kObjectAllocated;
  entry.checksum = hvs::ChecksumOf(entry);
  return entry;
}

Result<void> CheckKey(const Key& key) {
  if (key.name.empty() || key.name.size() > hvs::kMaxNameBytes ||
      key.name.find('\0') != std::string::npos)
    return MakeError(Code::kInvalidArgument, "'{}' is no name of a key: 1 to {} bytes, no NUL",
                     key.name, hvs::kMaxNameBytes);
  if (!key.is_node() && !key.children.empty())
    return MakeError(Code::kInvalidArgument, "key '{}' has a value and keys below it", key.name);
  return {};
}

}  // namespace

HvsWriter::HvsWriter(int fd) : fd_(fd), end_(hvs::kRootTableOffset + hvs::kTableBytes) {}

uint64_t HvsWriter::Take(uint64_t size) {
  const uint64_t offset = end_;
  end_ += hvs::AlignUp(size, hvs::kAlignment);
  return offset;
}

Result<FileObject> HvsWriter::Reserve(uint32_t size) {
  if (size == 0 || size > kMaxObjectBytes)
    return MakeError(Code::kInvalidArgument, "an object of {} bytes; 1 to {} are allowed", size,
                     kMaxObjectBytes);
  const std::lock_guard lock(mutex_);
  objects_.push_back({Take(size), size});
  return objects_.back();
}

void HvsWriter::GiveUp(const FileObject& object) {
  const std::lock_guard lock(mutex_);
  const auto at = std::lower_bound(
      objects_.begin(), objects_.end(), object,
      [](const FileObject& a, const FileObject& b) { return a.offset < b.offset; });
  KVMBUS_ASSERT(at != objects_.end() && *at == object);
  objects_.erase(at);
  // Where the file system cannot, the bytes stay: nobody reads them.
  (void)::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(object.offset),
                    static_cast<off_t>(hvs::AlignUp(object.size, hvs::kAlignment)));
}

Result<FileObject> HvsWriter::Append(std::string_view bytes) {
  if (bytes.size() > kMaxObjectBytes)
    return MakeError(Code::kInvalidArgument, "an object of {} bytes; 1 to {} are allowed",
                     bytes.size(), kMaxObjectBytes);
  const FileObject object = TRY(Reserve(static_cast<uint32_t>(bytes.size())));
  TRY_VOID_CTX(Write(fd_, bytes, object.offset), "writing an object");
  return object;
}

/// Objects are in the order of their offsets.
Result<void> HvsWriter::CheckNode(const Key& node, uint32_t depth) const {
  if (depth > hvs::kMaxDepth)
    return MakeError(Code::kInvalidArgument, "keys lie more than {} deep", hvs::kMaxDepth);
  for (const Key& key : node.children) {
    TRY_VOID(CheckKey(key));
    if (const auto* object = std::get_if<FileObject>(&key.value)) {
      const auto at = std::lower_bound(
          objects_.begin(), objects_.end(), *object,
          [](const FileObject& a, const FileObject& b) { return a.offset < b.offset; });
      if (at == objects_.end() || !(*at == *object))
        return MakeError(Code::kInvalidArgument, "the object of key '{}' is not in this container",
                         key.name);
    }
    TRY_VOID(CheckNode(key, depth + 1));
  }
  return {};
}

Result<void> HvsWriter::AddChildren(const Key& node, hvs::KeyTableWriter::Place place,
                                    hvs::KeyTableWriter* tables) {
  uint32_t sequence = 0;
  for (const Key& key : node.children) {
    Encoded value = TRY(std::visit(Encoder{key}, key.value));
    hvs::KeyTableWriter::Entry entry{value.type, 0, place, ++sequence, key.name, {}};
    std::string data;
    if (const auto* object = std::get_if<FileObject>(&key.value)) {
      entry.flags = hvs::kKeyIsObject;
      data = PointerTo(*object);
    } else if (value.bytes.size() >= hvs::kInlineBytes) {
      entry.flags = hvs::kKeyIsObject;
      data = PointerTo(TRY(Append(value.bytes)));
    } else {
      if (value.counted) data = hvs::BytesOf(static_cast<uint32_t>(value.bytes.size()));
      data += value.bytes;
    }
    entry.data = data;
    const auto own = TRY(tables->Add(entry));
    TRY_VOID(AddChildren(key, own, tables));
  }
  return {};
}

Result<void> HvsWriter::Finish(const Key& root) {
  TRY_VOID(CheckNode(root, 0));
  hvs::KeyTableWriter keys;
  TRY_VOID(AddChildren(root, {}, &keys));
  std::vector<hvs::ObjectEntry> entries;
  for (const std::string& table : keys.Finish()) {
    const uint64_t offset = Take(table.size());
    TRY_VOID_CTX(Write(fd_, table, offset), "writing a key table");
    entries.push_back(ObjectEntryOf(hvs::ObjectType::kKeyTable, offset, table.size()));
  }
  for (const FileObject& object : objects_)
    entries.push_back(ObjectEntryOf(hvs::ObjectType::kFileObject, object.offset, object.size));
  TRY_VOID_CTX(WriteObjectTables(entries), "writing object tables");
  return WriteReplayLogAndHeaders();
}

Result<void> HvsWriter::WriteObjectTables(const std::vector<hvs::ObjectEntry>& entries) {
  constexpr size_t kRoom = hvs::kObjectEntries - 1;  // the last one is the next table's
  const hvs::ObjectEntry empty = ObjectEntryOf(hvs::ObjectType::kEmpty, 0, 0);
  uint64_t offset = hvs::kRootTableOffset;
  for (size_t first = 0;; first += kRoom) {
    const size_t count = std::min(kRoom, entries.size() - first);
    const bool last = first + count == entries.size();
    const uint64_t next = last ? 0 : Take(hvs::kTableBytes);
    std::string table(
        hvs::BytesOf(hvs::ObjectTableHeader{hvs::kObjectTableSignature, hvs::kObjectEntries}));
    for (size_t i = 0; i < kRoom; ++i)
      table += hvs::BytesOf(i < count ? entries[first + i] : empty);
    table += hvs::BytesOf(
        last ? empty : ObjectEntryOf(hvs::ObjectType::kObjectTable, next, hvs::kTableBytes));
    table.resize(hvs::kTableBytes, '\0');
    TRY_VOID(Write(fd_, table, offset));
    if (last) return {};
    offset = next;
  }
}

/// The log is empty, but whoever changes the file in place needs one.
Result<void> HvsWriter::WriteReplayLogAndHeaders() {
  constexpr uint32_t kLogHeaderBytes = 4096, kLogBytes = 64 << 10;
  hvs::ReplayLogHeader log = {};
  log.signature = hvs::kReplayLogSignature;
  log.max_entries = (kLogHeaderBytes - sizeof(log)) / sizeof(hvs::ReplayEntryChecksumFirst);
  log.checksum = hvs::ChecksumOf(log);
  hvs::Header header = {};
  header.signature = hvs::kHeaderSignature;
  header.format_version = hvs::kVersion;
  header.data_alignment = hvs::kAlignment;
  header.replay_log_offset = Take(kLogBytes);
  header.replay_log_size = kLogBytes;
  header.replay_log_header_size = kLogHeaderBytes;
  TRY_VOID_CTX(Write(fd_, hvs::BytesOf(log), header.replay_log_offset), "writing the replay log");
  if (::ftruncate(fd_, static_cast<off_t>(end_)) < 0)
    return Error::FromErrno(errno, "sizing the container");
  for (const int copy : {0, 1}) {
    header.sequence = copy == 0 ? 1 : 0;  // equal ones count as damage
    header.checksum = hvs::ChecksumOf(header);
    TRY_VOID_CTX(Write(fd_, hvs::BytesOf(header), hvs::kHeaderOffset[copy]), "writing header {}",
                 copy + 1);
  }
  return {};
}

}  // namespace kvmbus::vmm
