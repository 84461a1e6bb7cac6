// SPDX-License-Identifier: Apache-2.0
#include "vmm/hvs/key_table_writer.h"

#include <cstddef>
#include <limits>

namespace kvmbus::vmm::hvs {
namespace {

constexpr size_t kMaxTables = kMaxTreeBytes / kTableBytes;
static_assert(kMaxTables <= std::numeric_limits<uint16_t>::max(), "an index has 16 bits");

std::string NewTable(size_t index) {
  KeyTableHeader header = {};
  header.signature = kKeyTableSignature;
  header.index = static_cast<uint16_t>(index);
  header.sequence = 1;
  header.checksum = ChecksumOf(header);
  return std::string(BytesOf(header));
}

std::string Compose(const KeyTableWriter::Entry& entry) {
  std::string name(entry.name);
  name.push_back('\0');
  KeyEntry header = {};
  header.type = static_cast<uint8_t>(entry.type);
  header.flags = entry.flags;
  header.size = static_cast<uint32_t>(sizeof(header) + name.size() + entry.data.size());
  header.parent_table = entry.parent.table;
  header.parent_offset = entry.parent.offset;
  header.insertion_sequence = entry.insertion_sequence;
  header.name_size = static_cast<uint8_t>(name.size());
  return std::string(BytesOf(header)) + name + std::string(entry.data);
}

void Put32(std::string* bytes, size_t offset, uint32_t value) {
  std::memcpy(bytes->data() + offset, &value, sizeof(value));
}

}  // namespace

Result<KeyTableWriter::Place> KeyTableWriter::Add(const Entry& entry) {
  std::string bytes = Compose(entry);
  if (tables_.empty() || tables_.back().size() + bytes.size() > kTableBytes) {
    if (tables_.size() == kMaxTables)
      return MakeError(Code::kResourceExhausted,
                       "the container would have more than {} MiB of keys, which nobody could read",
                       kMaxTreeBytes >> 20);
    CloseTable();
    tables_.push_back(NewTable(tables_.size() + 1));
  }
  last_entry_ = tables_.back().size();
  Put32(&bytes, offsetof(KeyEntry, checksum), Crc32(bytes));
  tables_.back() += bytes;
  return Place{static_cast<uint16_t>(tables_.size()), static_cast<uint32_t>(last_entry_)};
}

/// Entries fill a table to its end. A gap that is too small for a free entry goes to the last one.
void KeyTableWriter::CloseTable() {
  if (tables_.empty()) return;
  std::string& table = tables_.back();
  const size_t gap = kTableBytes - table.size();
  if (gap == 0) return;
  if (gap > sizeof(KeyEntry)) {
    KeyEntry free = {};
    free.type = static_cast<uint8_t>(KeyType::kFree);
    free.size = static_cast<uint32_t>(gap);
    table += BytesOf(free);
  } else {
    auto last = Load<KeyEntry>(table, last_entry_);
    const size_t used = table.size() - last_entry_;
    last.size += static_cast<uint32_t>(gap);
    last.checksum = 0;
    last.checksum =
        Crc32(std::string_view(table).substr(last_entry_ + sizeof(last), used - sizeof(last)),
              Crc32(BytesOf(last)));
    table.replace(last_entry_, sizeof(last), BytesOf(last));
  }
  table.resize(kTableBytes, '\0');
}

std::vector<std::string> KeyTableWriter::Finish() {
  CloseTable();
  return std::move(tables_);
}

}  // namespace kvmbus::vmm::hvs
