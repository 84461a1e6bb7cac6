// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhd/vhd_format.h"

#include <algorithm>

namespace kvmbus::virtdev::vhd {

Geometry GeometryOf(uint64_t disk_bytes) {
  constexpr uint64_t kMaxCylinders = 65535, kMaxHeads = 16;
  const uint64_t sectors = std::min(disk_bytes / kSector, kMaxCylinders * kMaxHeads * 255);
  uint64_t heads = kMaxHeads, track = 255, columns = 0;  // a column: cylinders times heads
  if (sectors >= kMaxCylinders * kMaxHeads * 63) {
    columns = sectors / track;
  } else {
    track = 17;
    columns = sectors / track;
    heads = std::max<uint64_t>(4, (columns + 1023) / 1024);
    if (columns >= heads * 1024 || heads > kMaxHeads) {
      track = 31;
      heads = kMaxHeads;
      columns = sectors / track;
    }
    if (columns >= heads * 1024) {
      track = 63;
      heads = kMaxHeads;
      columns = sectors / track;
    }
  }
  return {static_cast<uint16_t>(columns / heads), static_cast<uint8_t>(heads),
          static_cast<uint8_t>(track)};
}

uint32_t OnesComplementSum(std::span<const uint8_t> bytes) {
  uint32_t sum = 0;
  for (const uint8_t byte : bytes) sum += byte;
  return ~sum;
}

uint32_t TimeStampOf(int64_t unix_time) {
  return static_cast<uint32_t>(std::clamp<int64_t>(unix_time - kEpoch, 0, 0xffffffff));
}

}  // namespace kvmbus::virtdev::vhd
