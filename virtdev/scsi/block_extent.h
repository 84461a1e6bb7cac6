// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which blocks a command block names, whatever its length.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvmbus::virtdev::scsi {

/// The length of command blocks with this operation code; 0 for the groups without one.
size_t CdbBytes(uint8_t opcode);

struct BlockExtent {
  uint64_t lba = 0;
  uint64_t count = 0;
};

/// The blocks of a READ, WRITE, VERIFY, WRITE SAME or SYNCHRONIZE CACHE of 6, 10, 12 or 16 bytes.
BlockExtent ParseExtent(const std::array<uint8_t, 16>& cdb);

}  // namespace kvmbus::virtdev::scsi
