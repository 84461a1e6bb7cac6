// SPDX-License-Identifier: Apache-2.0
/// \file
/// KeyTableReader: makes a tree of the entries of key tables. For hvs_reader.cc.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "vmm/hvs/hvs_format.h"
#include "vmm/hvs/key_tree.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm::hvs {

class KeyTableReader {
 public:
  /// The bytes of an object, or nullopt if it is to stay one.
  using ReadObject = std::function<Result<std::optional<std::string>>(const FileObject&)>;

  KeyTableReader(uint32_t format_version, ReadObject read_object)
      : ordered_(format_version >= kOrderVersion), read_object_(std::move(read_object)) {}

  /// `file_offset`: where it lies, for messages.
  Result<void> Add(std::string table, uint64_t file_offset);
  /// The unnamed root of all that was added.
  Result<Key> Build();

 private:
  struct Table {
    std::string bytes;
    uint64_t file_offset;
    uint16_t sequence;
  };
  struct Place {
    uint16_t table = 0;  ///< 0: the root
    uint32_t offset = 0;
    auto operator<=>(const Place&) const = default;
  };
  struct Entry {
    Place place, parent;
    uint32_t sequence;
    Key key;
  };

  Result<void> ParseTable(uint16_t index, const Table& table);
  Result<Entry> ParseEntry(const KeyEntry& header, std::string_view bytes) const;
  Result<Key::Value> ParseValue(const KeyEntry& header, std::string_view data) const;
  Result<Key::Value> ParseInline(KeyType type, std::string_view data) const;
  Result<Key::Value> ParsePointer(KeyType type, std::string_view data) const;
  Result<std::vector<Key>> TakeChildren(const Place& parent, uint32_t depth);

  const bool ordered_;
  const ReadObject read_object_;
  std::map<uint16_t, Table> tables_;
  std::vector<Entry> entries_;  ///< sorted by parent when all are parsed
  size_t taken_ = 0;
};

}  // namespace kvmbus::vmm::hvs
