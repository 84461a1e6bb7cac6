// SPDX-License-Identifier: Apache-2.0
#include "virtdev/scsi/block_extent.h"

#include "virtdev/scsi/scsi_protocol.h"

namespace kvmbus::virtdev::scsi {

size_t CdbBytes(uint8_t opcode) {
  constexpr std::array<size_t, 8> kBytesOfGroup = {6, 10, 10, 0, 16, 12, 0, 0};
  return kBytesOfGroup[opcode >> 5];
}

BlockExtent ParseExtent(const std::array<uint8_t, 16>& cdb) {
  switch (CdbBytes(cdb[0])) {
    case 6: {
      const uint64_t lba = GetBe<uint32_t>(cdb, 0) & 0x1fffff;
      return {lba, cdb[4] == 0 ? 256u : cdb[4]};  // the only form in which 0 means many
    }
    case 10:
      return {GetBe<uint32_t>(cdb, 2), GetBe<uint16_t>(cdb, 7)};
    case 12:
      return {GetBe<uint32_t>(cdb, 2), GetBe<uint32_t>(cdb, 6)};
    default:
      return {GetBe<uint64_t>(cdb, 2), GetBe<uint32_t>(cdb, 10)};
  }
}

}  // namespace kvmbus::virtdev::scsi
