// SPDX-License-Identifier: Apache-2.0
/// \file
/// The two headers of a VHDX file: which one counts, and how it is replaced.
/// Reference: [MS-VHDX] section 2.2.2.
#pragma once

#include <cstdint>

#include "virtdev/disk/block_file.h"
#include "virtdev/disk/vhdx/vhdx_format.h"

namespace kvmbus::virtdev::vhdx {

struct ActiveHeader {
  Header header{};
  int slot = 0;  ///< which of the two it is
};

/// The newer of the two valid headers, its log's place checked against the file. kDataLoss if
/// neither is valid.
vmm::Result<ActiveHeader> ReadActiveHeader(BlockFile& file, uint64_t file_bytes);

/// Writes the header into the slot that does not count yet, with the next sequence number, and
/// flushes: from then on it counts. A torn write leaves the old one.
vmm::Result<void> WriteNextHeader(BlockFile& file, ActiveHeader* active);

}  // namespace kvmbus::virtdev::vhdx
