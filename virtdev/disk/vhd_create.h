// SPDX-License-Identifier: Apache-2.0
/// \file
/// New VHD files.
#pragma once

#include <string>
#include <vector>

#include "virtdev/disk/disk_tools.h"
#include "virtdev/disk/vhd_format.h"

namespace kvmbus::virtdev {

/// kInvalidArgument and kOutOfRange for what the format does not have.
vmm::Result<void> CheckVhdOptions(const CreateDiskOptions& options);

/// The empty image itself, into an empty file. `disk_id` becomes its unique id.
vmm::Result<void> FormatVhd(BlockFile& file, const CreateDiskOptions& options,
                            const vmm::Guid& disk_id);

/// What a child keeps of its parent.
struct VhdParent {
  vmm::Guid identity;  ///< the parent's unique id
  uint64_t size_bytes = 0;
  int64_t modified = 0;       ///< of its file, in Unix time: Windows compares it
  std::string relative_path;  ///< as it is to stand there: ".\\base.vhd"
  std::string absolute_path;  ///< the same; "" for none
};

/// Of the image in the file `path`, to which `reference` leads.
vmm::Result<VhdParent> VhdParentOf(const std::string& path, const Image& parent,
                                   const ParentReference& reference);

/// Makes a header say that of its parent. The texts of its locators, whole sectors, which are to be
/// written in one piece where PlaceLocators then says that they are. kInvalidArgument: a path that
/// is no text, or too long.
vmm::Result<std::vector<uint8_t>> SetVhdParent(vhd::DynamicHeader* header, const VhdParent& parent);
void PlaceLocators(vhd::DynamicHeader* header, uint64_t file_offset);

/// An empty differencing image (.vhd or .avhd), into an empty file.
vmm::Result<void> FormatVhdChild(BlockFile& file, const VhdParent& parent);

}  // namespace kvmbus::virtdev
