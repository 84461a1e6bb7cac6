// SPDX-License-Identifier: Apache-2.0
/// \file
/// KeyTableWriter: lays keys out in key tables. For hvs_writer.cc.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vmm/hvs/hvs_format.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm::hvs {

class KeyTableWriter {
 public:
  /// Of an entry; the root has none.
  struct Place {
    uint16_t table = 0;
    uint32_t offset = 0;
  };
  struct Entry {
    KeyType type;
    uint8_t flags = 0;
    Place parent;
    uint32_t insertion_sequence;  ///< from 1, among the parent's children
    std::string_view name;        ///< at most kMaxNameBytes
    std::string_view data;        ///< shorter than kInlineBytes and its length
  };

  /// Parents first. kResourceExhausted: no more tables.
  Result<Place> Add(const Entry& entry);
  /// The tables, of kTableBytes each; nothing can be added any more.
  std::vector<std::string> Finish();

 private:
  void CloseTable();

  std::vector<std::string> tables_;
  size_t last_entry_ = 0;  ///< in the last table
};

}  // namespace kvmbus::vmm::hvs
