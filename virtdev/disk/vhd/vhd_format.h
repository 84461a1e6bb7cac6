// SPDX-License-Identifier: Apache-2.0
/// \file
/// VHD on disk, big-endian. Reference: "Virtual Hard Disk Image Format Specification" 1.0.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <span>

#include "vmm/guid/guid.h"

namespace kvmbus::virtdev::vhd {

/// An integer as the file has it.
template <std::unsigned_integral T>
class BigEndian {
 public:
  constexpr BigEndian() = default;
  constexpr BigEndian(T value) { *this = value; }  // NOLINT: it is an integer
  constexpr BigEndian& operator=(T value) {
    for (size_t i = 0; i < sizeof(T); ++i)
      bytes_[sizeof(T) - 1 - i] = static_cast<uint8_t>(value >> (8 * i));
    return *this;
  }
  constexpr operator T() const {
    uint64_t value = 0;
    for (const uint8_t byte : bytes_) value = value << 8 | byte;
    return static_cast<T>(value);
  }

 private:
  uint8_t bytes_[sizeof(T)]{};
};
using Be16 = BigEndian<uint16_t>;
using Be32 = BigEndian<uint32_t>;
using Be64 = BigEndian<uint64_t>;

inline constexpr uint32_t kSector = 512;
inline constexpr uint32_t kFooterBytes = 512;
inline constexpr uint32_t kOldFooterBytes = 511;  ///< of Virtual PC before 2004
inline constexpr uint32_t kHeaderBytes = 1024;
inline constexpr uint64_t kHeaderOffset = 512;  ///< ours; others may lie elsewhere
inline constexpr uint64_t kTableOffset = kHeaderOffset + kHeaderBytes;

inline constexpr uint64_t kFooterCookie = 0x636f6e6563746978;  // "conectix"
inline constexpr uint64_t kHeaderCookie = 0x6378737061727365;  // "cxsparse"
inline constexpr uint32_t kVersion = 0x00010000;
inline constexpr uint64_t kNoOffset = ~uint64_t{0};
inline constexpr uint32_t kFeatureReserved = 2;            ///< always set
inline constexpr uint32_t kCreatorWindows = 0x77696e20;    // "win "
inline constexpr uint32_t kCreatorVersion = 0x000a0000;    // Windows 10
inline constexpr uint32_t kCreatorOsWindows = 0x5769326b;  // "Wi2k"
inline constexpr int64_t kEpoch = 946684800;               ///< 2000-01-01 in Unix time
/// Seconds since 2000, clamped to what the format can store.
uint32_t TimeStampOf(int64_t unix_time);

enum class DiskType : uint32_t { kFixed = 2, kDynamic = 3, kDifferencing = 4 };

struct Footer {
  Be64 cookie;
  Be32 features;
  Be32 version;
  Be64 data_offset;  ///< of the dynamic header; kNoOffset in a fixed disk
  Be32 time_stamp;   ///< seconds since 2000
  Be32 creator_app;
  Be32 creator_version;
  Be32 creator_os;
  Be64 original_size;
  Be64 current_size;
  Be16 cylinders;
  uint8_t heads;
  uint8_t sectors_per_track;
  Be32 disk_type;
  Be32 checksum;
  vmm::Guid unique_id;
  uint8_t saved_state;
  uint8_t reserved[427];
};
static_assert(sizeof(Footer) == kFooterBytes && alignof(Footer) == 1);

struct ParentLocator {
  Be32 platform_code;
  Be32 data_space;  ///< sectors, says the specification; bytes, say most files
  Be32 data_length;
  Be32 reserved;
  Be64 data_offset;
};
inline constexpr size_t kLocators = 8;
inline constexpr uint32_t kLocatorRelative = 0x57327275;     // "W2ru": UTF-16LE
inline constexpr uint32_t kLocatorAbsolute = 0x57326b75;     // "W2ku"
inline constexpr uint32_t kLocatorOldRelative = 0x57693272;  // "Wi2r"
inline constexpr uint32_t kLocatorOldAbsolute = 0x5769326b;  // "Wi2k"

struct DynamicHeader {
  Be64 cookie;
  Be64 data_offset;  ///< kNoOffset
  Be64 table_offset;
  Be32 version;
  Be32 max_table_entries;
  Be32 block_size;  ///< of the data alone
  Be32 checksum;
  vmm::Guid parent_unique_id;
  Be32 parent_time_stamp;
  Be32 reserved;
  uint8_t parent_unicode_name[512];  ///< UTF-16BE
  ParentLocator locators[kLocators];
  uint8_t reserved2[256];
};
static_assert(sizeof(DynamicHeader) == kHeaderBytes && alignof(DynamicHeader) == 1);

inline constexpr uint32_t kUnallocated = 0xffffffff;  ///< BAT entry

inline constexpr uint64_t kMaxDiskBytes = uint64_t{2040} << 30;
/// The format allows any power of two; these are what one meets, and more.
inline constexpr uint32_t kMinBlockBytes = 64u << 10;
inline constexpr uint32_t kMaxBlockBytes = 256u << 20;
/// A BAT entry is a sector number.
inline constexpr uint64_t kMaxBlockStart = uint64_t{kUnallocated} * kSector;

constexpr uint64_t RoundUp(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}
/// Bytes of the sector bitmap in front of a block's data.
constexpr uint32_t BitmapBytes(uint32_t block_bytes) {
  return static_cast<uint32_t>(RoundUp(block_bytes / kSector / 8, kSector));
}
constexpr uint64_t BlockCount(uint64_t disk_bytes, uint32_t block_bytes) {
  return (disk_bytes + block_bytes - 1) / block_bytes;
}
/// Where a block begins that comes after `end`: its data is 4 KiB aligned.
constexpr uint64_t BlockStartAfter(uint64_t end, uint32_t bitmap_bytes) {
  return RoundUp(end + bitmap_bytes, 4096) - bitmap_bytes;
}

struct Geometry {
  uint16_t cylinders;
  uint8_t heads;
  uint8_t sectors_per_track;
  bool operator==(const Geometry&) const = default;
  uint64_t bytes() const { return uint64_t{cylinders} * heads * sectors_per_track * kSector; }
};
/// What the specification makes of a size: the geometry may hold less than the disk.
Geometry GeometryOf(uint64_t disk_bytes);

uint32_t OnesComplementSum(std::span<const uint8_t> bytes);
/// A structure's checksum: its own field counts as zero.
template <typename T>
uint32_t ChecksumOf(T structure) {
  structure.checksum = 0;
  return OnesComplementSum({reinterpret_cast<const uint8_t*>(&structure), sizeof(T)});
}

template <typename T>
std::span<uint8_t> BytesOf(T& structure) {
  return {reinterpret_cast<uint8_t*>(&structure), sizeof(T)};
}
template <typename T>
std::span<const uint8_t> BytesOf(const T& structure) {
  return {reinterpret_cast<const uint8_t*>(&structure), sizeof(T)};
}

}  // namespace kvmbus::virtdev::vhd
