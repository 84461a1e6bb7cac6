// SPDX-License-Identifier: Apache-2.0
/// \file
/// VhdFile: a VHD file read and checked from its footers to its BAT.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "virtdev/disk/block_file.h"
#include "virtdev/disk/image.h"
#include "virtdev/disk/vhd/vhd_format.h"

namespace kvmbus::virtdev::vhd {

/// A part of the file that is no block.
struct Structure {
  uint64_t offset, length;
  std::string name;
};

/// Home: whoever opened it.
struct VhdFile {
  std::unique_ptr<BlockFile> file;
  uint64_t file_bytes = 0;
  Footer footer;                 ///< the one that counts
  bool footer_is_sound = true;   ///< the one at the end is there and is that one
  bool copy_is_sound = true;     ///< the one at 0 is equal; a fixed disk has none
  uint64_t footer_offset = 0;    ///< where the space for blocks ends
  DynamicHeader header;          ///< this and the rest: not of a fixed disk
  std::vector<Structure> parts;  ///< sorted
  ParentReference parent;

  DiskType type() const { return static_cast<DiskType>(uint32_t{footer.disk_type}); }
  bool fixed() const { return type() == DiskType::kFixed; }
  bool differencing() const { return type() == DiskType::kDifferencing; }
  /// CurrentSize, as Hyper-V has it, whoever made the image. Virtual PC showed its guests what the
  /// geometry holds, which is up to a cylinder less; old QEMU images have the same in both.
  uint64_t disk_bytes() const { return footer.current_size; }
  uint64_t blocks() const { return BlockCount(disk_bytes(), header.block_size); }
};

/// Reads and checks a VHD file; changes nothing. If the footer at the end is damaged or not this
/// image's (a crash can leave the file ending in a guest's data), the copy at 0 counts instead.
/// kDataLoss says what is wrong, and where.
vmm::Result<VhdFile> OpenVhdFile(std::unique_ptr<BlockFile> file);

/// True if there is a sound footer at the end or at 0.
vmm::Result<bool> HasVhdFooter(BlockFile& file);

/// The parent's names in the header and the places of their locators.
vmm::Result<ParentReference> ReadParentReference(BlockFile& file, const DynamicHeader& header,
                                                 uint64_t file_bytes,
                                                 std::vector<Structure>* parts);

}  // namespace kvmbus::virtdev::vhd
