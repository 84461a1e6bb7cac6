// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_format.h"

#include <isa-l/crc.h>

#include <array>

namespace kvmbus::virtdev::vhdx {
namespace {

uint32_t Extend(uint32_t crc, std::span<const uint8_t> bytes) {
  // isa-l does not write through its pointer; its length is an int.
  return crc32_iscsi(const_cast<unsigned char*>(bytes.data()), static_cast<int>(bytes.size()), crc);
}

}  // namespace

uint32_t Crc32c(std::span<const uint8_t> bytes) { return ~Extend(~0u, bytes); }

void Crc32cSum::Add(std::span<const uint8_t> bytes) { crc_ = Extend(crc_, bytes); }

uint32_t StructureChecksum(std::span<const uint8_t> bytes) {
  static constexpr std::array<uint8_t, 4> kZeroField{};
  uint32_t crc = Extend(~0u, bytes.first(4));
  crc = Extend(crc, kZeroField);
  return ~Extend(crc, bytes.subspan(8));
}

}  // namespace kvmbus::virtdev::vhdx
