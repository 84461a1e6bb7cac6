// SPDX-License-Identifier: Apache-2.0
/// \file
/// The tree of typed keys that Hyper-V keeps configurations and saved states in, whatever the file
/// that holds it: a HyperVStorage container (.vmcx, .vmrs) or XML.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace kvmbus::vmm {

/// Bytes of a key of type Array.
struct KeyBytes {
  std::string bytes;
  bool operator==(const KeyBytes&) const = default;
};

/// Bytes of a key that lie elsewhere in the container.
struct FileObject {
  uint64_t offset = 0;  ///< in the file, aligned to 4096
  uint32_t size = 0;    ///< in bytes
  bool operator==(const FileObject&) const = default;
};

/// One key with its value, or a node with keys below it. Names repeat among siblings (XML's lists);
/// their order counts.
struct Key {
  using Value = std::variant<std::monostate, int64_t, uint64_t, double, std::string, KeyBytes, bool,
                             FileObject>;

  std::string name;           ///< UTF-8
  Value value;                ///< monostate: a node; a string is UTF-8
  std::vector<Key> children;  ///< of a node

  bool operator==(const Key&) const = default;
  bool is_node() const { return std::holds_alternative<std::monostate>(value); }

  /// The first key that `path` ("settings/memory/bank") names below this one, or null.
  const Key* Find(std::string_view path) const;
  Key* Find(std::string_view path);
  /// As Find, and makes what is missing; a value on the way there becomes a node.
  Key& Make(std::string_view path);
  /// Of the key that `path` names; `otherwise` if there is none or it has another type.
  int64_t IntOr(std::string_view path, int64_t otherwise) const;
  bool BoolOr(std::string_view path, bool otherwise) const;
  std::string StringOr(std::string_view path, std::string_view otherwise) const;
  /// Removes the first key that `path` names, with all below it; false: there is none.
  bool Remove(std::string_view path);
};

}  // namespace kvmbus::vmm
