// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the offline operations on VHD files share. The format has no log: each step is a write that
/// a crash leaves undone or done, with a flush behind it. Errors: the host's.
#pragma once

#include <memory>
#include <set>
#include <vector>

#include "virtdev/disk/vhd/vhd_bat.h"
#include "virtdev/disk/vhd/vhd_file.h"

namespace kvmbus::virtdev::vhd {

/// A file whose footers are sound: mended if they were not. While nothing else changes the copy at
/// 0, a dynamic or differencing image may end anywhere.
vmm::Result<VhdFile> OpenVhdToEdit(std::unique_ptr<BlockFile> file);

/// A part of the file that nobody owns.
struct Gap {
  uint64_t offset, end;
};
/// The gaps in front of the last part that has an owner, sorted.
std::vector<Gap> GapsOf(const VhdFile& vhd, const BlockTable& table);

/// Writes the BAT entries of these blocks, durably, once all that was written before is durable.
vmm::Result<void> CommitEntries(const VhdFile& vhd, const BlockTable& table,
                                const std::set<uint64_t>& blocks);
/// Blocks behind the disk's end, which a cut operation or another program has left, are given up.
vmm::Result<void> ForgetPastEnd(const VhdFile& vhd, BlockTable* table, uint64_t blocks);
/// What lies behind the disk's end in its last block reads as zeroes. Durable.
vmm::Result<void> ZeroPastEnd(const VhdFile& vhd, const BlockTable& table, uint64_t disk_bytes);

/// Copies a block with its bitmap; unflushed.
vmm::Result<void> CopyBlock(const VhdFile& vhd, uint64_t from, uint64_t to);

/// The header in its place. What changed lies in its first sector alone, so that it is never torn.
vmm::Result<void> WriteHeaderSector(const VhdFile& vhd, DynamicHeader header);
/// The last footer at `end` or a bit behind it, and nothing after it. Durable.
vmm::Result<void> WriteEndFooter(BlockFile& file, const Footer& footer, uint64_t end);

}  // namespace kvmbus::virtdev::vhd
