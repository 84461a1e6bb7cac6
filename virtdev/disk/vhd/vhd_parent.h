// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a differencing VHD says of its parent.
#pragma once

#include <string>
#include <vector>

#include "virtdev/disk/vhd/vhd_file.h"

namespace kvmbus::virtdev {

/// What a child keeps of its parent.
struct VhdParent {
  vmm::Guid identity;  ///< the parent's unique id
  uint64_t size_bytes = 0;
  int64_t modified = 0;       ///< of its file, in Unix time: Windows compares it
  std::string relative_path;  ///< as it is to stand there: ".\\base.vhd"
  std::string absolute_path;  ///< the same; "" for none
};

/// What a child of `size_bytes` keeps of the parent that `reference` describes: by its first path,
/// which is relative, and by the second, an absolute one, if there is one.
VhdParent VhdParentOf(const ParentReference& reference, uint64_t size_bytes);

/// Puts the description of the parent into a header. Returns the texts of its locators, in whole
/// sectors: they are to be written in one piece, at the offset that PlaceLocators is then given.
/// kInvalidArgument: a path that is no text, or too long.
vmm::Result<std::vector<uint8_t>> SetVhdParent(vhd::DynamicHeader* header, const VhdParent& parent);
void PlaceLocators(vhd::DynamicHeader* header, uint64_t file_offset);

}  // namespace kvmbus::virtdev
