// SPDX-License-Identifier: Apache-2.0
#include "vmm/hvs/hvs_reader.h"

#include <algorithm>
#include <set>
#include <vector>

#include "vmm/hvs/hvs_file_view.h"
#include "vmm/hvs/key_table_reader.h"

namespace kvmbus::vmm {
namespace {

using hvs::FileView;

/// The entries of a table, but the empty ones. `left`: how many all tables may have yet.
Result<std::vector<hvs::ObjectEntry>> ReadObjectTable(const FileView& view, uint64_t offset,
                                                      uint64_t* left) {
  const auto header =
      hvs::Load<hvs::ObjectTableHeader>(TRY(view.Read(offset, sizeof(hvs::ObjectTableHeader))), 0);
  if (header.signature != hvs::kObjectTableSignature)
    return MakeError(Code::kDataLoss, "the object table at {:#x} is damaged", offset);
  if (header.entries > *left)
    return MakeError(Code::kOutOfRange,
                     "the object table at {:#x} has {} entries, with which there are too many",
                     offset, uint32_t{header.entries});
  *left -= header.entries;
  const std::string bytes =
      TRY(view.Read(offset + sizeof(header), uint64_t{header.entries} * sizeof(hvs::ObjectEntry)));
  std::vector<hvs::ObjectEntry> entries;
  for (size_t at = 0; at < bytes.size(); at += sizeof(hvs::ObjectEntry)) {
    const auto entry = hvs::Load<hvs::ObjectEntry>(bytes, at);
    if (entry.type == static_cast<uint8_t>(hvs::ObjectType::kEmpty)) continue;
    if (view.header().format_version >= hvs::kEntryChecksumVersion &&
        entry.checksum != hvs::ChecksumOf(entry))
      return MakeError(Code::kDataLoss, "entry {} of the object table at {:#x} is damaged",
                       at / sizeof(entry), offset);
    entries.push_back(entry);
  }
  return entries;
}

/// Where the key tables are, following the chain of object tables.
Result<std::vector<hvs::ObjectEntry>> FindKeyTables(const FileView& view, uint64_t limit_bytes) {
  std::vector<hvs::ObjectEntry> key_tables;
  std::vector<uint64_t> waiting = {hvs::kRootTableOffset};
  std::set<uint64_t> seen(waiting.begin(), waiting.end());
  // Its size bounds nothing by itself: a sparse file is as large as one likes.
  uint64_t left = std::min(view.size(), limit_bytes) / sizeof(hvs::ObjectEntry);
  while (!waiting.empty()) {
    const uint64_t offset = waiting.back();
    waiting.pop_back();
    for (const hvs::ObjectEntry& entry : TRY(ReadObjectTable(view, offset, &left))) {
      const auto type = static_cast<hvs::ObjectType>(entry.type);
      if (type == hvs::ObjectType::kKeyTable) key_tables.push_back(entry);
      if (type != hvs::ObjectType::kObjectTable) continue;
      const uint64_t next = entry.offset;
      if (!seen.insert(next).second)
        return MakeError(Code::kDataLoss, "the object tables lead to {:#x} twice", next);
      waiting.push_back(next);
    }
  }
  return key_tables;
}

Result<Key> ReadTree(const FileView& view, const HvsReader::Limits& limits) {
  uint64_t left = limits.tree_bytes;
  const auto read_object = [&](const FileObject& object) -> Result<std::optional<std::string>> {
    if (object.offset > view.size() || object.size > view.size() - object.offset)
      return MakeError(Code::kDataLoss,
                       "its object at {:#x}+{:#x} lies past the end of the file ({} bytes)",
                       object.offset, object.size, view.size());
    if (object.size > limits.inline_bytes || object.size > left)
      return std::optional<std::string>();
    left -= object.size;
    return std::optional(TRY(view.Read(object.offset, object.size)));
  };
  hvs::KeyTableReader tables(view.header().format_version, read_object);
  for (const hvs::ObjectEntry& entry : TRY(FindKeyTables(view, limits.tree_bytes))) {
    if (entry.size > left)
      return MakeError(Code::kOutOfRange, "its keys have more than {} bytes", limits.tree_bytes);
    left -= entry.size;
    std::string table = TRY(view.Read(entry.offset, entry.size));
    TRY_VOID(tables.Add(std::move(table), entry.offset));
  }
  return tables.Build();
}

}  // namespace

Result<HvsReader> HvsReader::Open(int fd, const Limits& limits) {
  const auto view = std::make_shared<const FileView>(TRY(FileView::Open(fd)));
  return HvsReader(view, TRY(ReadTree(*view, limits)));
}

Result<std::string> HvsReader::Read(const FileObject& object, uint32_t limit_bytes) const {
  if (object.size > limit_bytes)
    return MakeError(Code::kOutOfRange, "the object at {:#x} has {} bytes, more than {}",
                     object.offset, object.size, limit_bytes);
  return view_->Read(object.offset, object.size);
}

}  // namespace kvmbus::vmm
