// SPDX-License-Identifier: Apache-2.0
/// \file
/// A tree of keys as the XML of version 5.0: an element a key, its type an attribute.
#pragma once

#include <string>
#include <string_view>

#include "vmm/hvs/key_tree.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

inline constexpr uint64_t kMaxXmlBytes = 4u << 20;  ///< of a file; real ones have 40 KiB

/// The unnamed root of a file's one element. UTF-16 or UTF-8, whatever the declaration says. What a
/// tree cannot hold (another type, an attribute, text between elements, a DTD) is kDataLoss.
Result<Key> ParseXmlTree(std::string_view file);

/// As Windows writes it: UTF-16LE with a byte order mark, siblings sorted by name. kInvalidArgument
/// for what XML cannot hold: more than one element at the top, names that are none of an element,
/// control characters, doubles, objects.
Result<std::string> FormatXmlTree(const Key& root);

}  // namespace kvmbus::vmm
