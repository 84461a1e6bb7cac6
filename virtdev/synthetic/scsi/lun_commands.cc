// SPDX-License-Identifier: Apache-2.0
#include "virtdev/synthetic/scsi/lun_commands.h"

#include <bit>

namespace kvmbus::virtdev {

namespace {
constexpr size_t kEntryBytes = 8;
constexpr size_t kHeaderBytes = 8;
}  // namespace

std::vector<uint8_t> ReportLunsData(uint64_t luns) {
  const size_t list = kEntryBytes * static_cast<size_t>(std::popcount(luns));
  std::vector<uint8_t> bytes(kHeaderBytes + list);
  scsi::PutBe<uint32_t>(bytes, 0, static_cast<uint32_t>(list));
  size_t at = kHeaderBytes;
  for (unsigned lun = 0; lun < 64; ++lun) {
    if ((luns >> lun & 1) == 0) continue;
    scsi::PutBe<uint16_t>(bytes, at, static_cast<uint16_t>(lun));
    at += kEntryBytes;
  }
  return bytes;
}

size_t ReportLunsAllocation(const std::array<uint8_t, 16>& cdb) {
  const uint32_t allocation = scsi::GetBe<uint32_t>(cdb, 6);
  return allocation < kHeaderBytes ? 0 : allocation;
}

}  // namespace kvmbus::virtdev
