// SPDX-License-Identifier: Apache-2.0
/// \file
/// The key tables' part of hvs_check.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace kvmbus::vmm::hvs_check {

/// Apart from the library that reader and writer use: no mistake of it is shared.
uint32_t OwnCrc32(std::string_view bytes);
/// `bytes` with the four at `field` zero.
uint32_t OwnCrc32Without(std::string bytes, size_t field);
/// Little-endian, of `width` bytes.
uint64_t Number(std::string_view bytes, size_t at, size_t width);

class Keys {
 public:
  using Fail = std::function<void(const std::string& where, const std::string& what)>;
  /// Of file objects that the object tables list: aligned size by offset.
  using Objects = std::map<uint64_t, uint64_t>;

  Keys(Fail fail, const Objects& objects) : fail_(std::move(fail)), objects_(objects) {}
  void AddTable(const std::string& bytes, uint64_t file_offset);
  /// When all tables are known.
  void Finish();

 private:
  using Place = std::pair<uint64_t, uint64_t>;  // table, offset
  struct Seen {
    Place parent;
    std::string name;
    uint64_t sequence;
    bool is_node;
    uint64_t next_sequence;
    std::string where;
  };

  void Entry(const std::string& where, Place place, std::string_view bytes);
  std::optional<size_t> Value(const std::string& where, uint64_t type, bool is_object,
                              std::string_view data);
  void Text(const std::string& where, std::string_view bytes);
  void Object(const std::string& where, std::string_view pointer);
  void Parents();
  void Sequences();

  const Fail fail_;
  const Objects& objects_;
  std::set<uint64_t> indexes_;
  std::set<uint64_t> used_objects_;
  std::map<Place, Seen> entries_;
};

}  // namespace kvmbus::vmm::hvs_check
