// SPDX-License-Identifier: Apache-2.0
/// \file
/// VHDX on disk, little-endian. Reference: [MS-VHDX], "Virtual Hard Disk v2 (VHDX) File Format".
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

#include "vmm/guid/guid.h"

namespace kvmbus::virtdev::vhdx {

inline constexpr uint64_t kMiB = 1ull << 20;
inline constexpr uint64_t kIdentifierOffset = 0;
inline constexpr uint64_t kHeaderOffset[2] = {64ull << 10, 128ull << 10};
inline constexpr uint64_t kRegionTableOffset[2] = {192ull << 10, 256ull << 10};
inline constexpr uint32_t kRegionTableBytes = 64u << 10;
inline constexpr uint32_t kHeaderBytes = 4096;
inline constexpr uint64_t kHeaderAreaEnd = kMiB;
inline constexpr uint64_t kLogSector = 4096;

inline constexpr uint64_t kFileSignature = 0x656c696678646876;      // "vhdxfile"
inline constexpr uint32_t kHeaderSignature = 0x64616568;            // "head"
inline constexpr uint32_t kRegionSignature = 0x69676572;            // "regi"
inline constexpr uint64_t kMetadataSignature = 0x617461646174656d;  // "metadata"
inline constexpr uint32_t kLogEntrySignature = 0x65676f6c;          // "loge"
inline constexpr uint32_t kDataDescriptorSignature = 0x63736564;    // "desc"
inline constexpr uint32_t kZeroDescriptorSignature = 0x6f72657a;    // "zero"
inline constexpr uint32_t kDataSectorSignature = 0x61746164;        // "data"

#pragma pack(push, 1)
struct Header {
  uint32_t signature;
  uint32_t checksum;  ///< CRC-32C of the 4096 bytes with this field zero
  uint64_t sequence_number;
  vmm::Guid file_write_guid;
  vmm::Guid data_write_guid;
  vmm::Guid log_guid;
  uint16_t log_version;
  uint16_t version;
  uint32_t log_length;
  uint64_t log_offset;
};
static_assert(sizeof(Header) == 80);

struct RegionTableHeader {
  uint32_t signature;
  uint32_t checksum;  ///< CRC-32C of the 64 KiB with this field zero
  uint32_t entry_count;
  uint32_t reserved;
};
struct RegionTableEntry {
  vmm::Guid guid;
  uint64_t file_offset;
  uint32_t length;
  uint32_t required;  ///< bit 0
};
static_assert(sizeof(RegionTableEntry) == 32);
inline constexpr uint32_t kMaxRegions = 2047;

struct MetadataTableHeader {
  uint64_t signature;
  uint16_t reserved;
  uint16_t entry_count;
  uint8_t reserved2[20];
};
struct MetadataTableEntry {
  vmm::Guid item_id;
  uint32_t offset;
  uint32_t length;
  uint32_t flags;
  uint32_t reserved;
};
static_assert(sizeof(MetadataTableHeader) == 32 && sizeof(MetadataTableEntry) == 32);
inline constexpr uint32_t kMetadataTableBytes = 64u << 10;
inline constexpr uint32_t kMaxMetadataItems = 2047;
inline constexpr uint32_t kMetadataIsUser = 1;
inline constexpr uint32_t kMetadataIsVirtualDisk = 2;
inline constexpr uint32_t kMetadataIsRequired = 4;
inline constexpr uint32_t kMetadataFlags = 7;

struct FileParameters {
  uint32_t block_size;
  uint32_t flags;
};
inline constexpr uint32_t kLeaveBlocksAllocated = 1;
inline constexpr uint32_t kHasParent = 2;

struct ParentLocatorHeader {
  vmm::Guid type;
  uint16_t reserved;
  uint16_t key_value_count;
};
/// Offsets count from the locator's start, lengths are in bytes of UTF-16LE without a NUL.
struct ParentLocatorEntry {
  uint32_t key_offset;
  uint32_t value_offset;
  uint16_t key_length;
  uint16_t value_length;
};
static_assert(sizeof(ParentLocatorHeader) == 20 && sizeof(ParentLocatorEntry) == 12);
inline constexpr uint32_t kMaxLocatorKeys = 256;

struct LogEntryHeader {
  uint32_t signature;
  uint32_t checksum;  ///< CRC-32C of the whole entry with this field zero
  uint32_t entry_length;
  uint32_t tail;
  uint64_t sequence_number;
  uint32_t descriptor_count;
  uint32_t reserved;
  vmm::Guid log_guid;
  uint64_t flushed_file_offset;
  uint64_t last_file_offset;
};
static_assert(sizeof(LogEntryHeader) == 64);
struct DataDescriptor {
  uint32_t signature;
  uint32_t trailing_bytes;
  uint64_t leading_bytes;
  uint64_t file_offset;
  uint64_t sequence_number;
};
struct ZeroDescriptor {
  uint32_t signature;
  uint32_t reserved;
  uint64_t zero_length;
  uint64_t file_offset;
  uint64_t sequence_number;
};
static_assert(sizeof(DataDescriptor) == 32 && sizeof(ZeroDescriptor) == 32);
struct DataSector {
  uint32_t signature;
  uint32_t sequence_high;
  uint8_t data[4084];
  uint32_t sequence_low;
};
static_assert(sizeof(DataSector) == kLogSector);
#pragma pack(pop)

inline constexpr vmm::Guid kBatRegion = vmm::MakeGuid("2DC27766-F623-4200-9D64-115E9BFD4A08");
inline constexpr vmm::Guid kMetadataRegion = vmm::MakeGuid("8B7CA206-4790-4B9A-B8FE-575F050F886E");
inline constexpr vmm::Guid kFileParametersItem =
    vmm::MakeGuid("CAA16737-FA36-4D43-B3B6-33F0AA44E76B");
inline constexpr vmm::Guid kVirtualDiskSizeItem =
    vmm::MakeGuid("2FA54224-CD1B-4876-B211-5DBED83BF4B8");
inline constexpr vmm::Guid kPage83Item = vmm::MakeGuid("BECA12AB-B2E6-4523-93EF-C309E000C746");
inline constexpr vmm::Guid kLogicalSectorSizeItem =
    vmm::MakeGuid("8141BF1D-A96F-4709-BA47-F233A8FAAB5F");
inline constexpr vmm::Guid kPhysicalSectorSizeItem =
    vmm::MakeGuid("CDA348C7-445D-4471-9CC9-E9885251C556");
inline constexpr vmm::Guid kParentLocatorItem =
    vmm::MakeGuid("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C");
inline constexpr vmm::Guid kVhdxParentLocator =
    vmm::MakeGuid("B04AEFB7-D19E-4A81-B789-25B8E9445913");
inline constexpr vmm::Guid kIncompleteFileItem =
    vmm::MakeGuid("71CC85F0-1B69-4E28-9558-C3BF83AE75D3");

/// BAT entries: state in bits 0 to 2, file offset in MiB from bit 20.
enum BlockState : uint64_t {
  kNotPresent = 0,
  kUndefined = 1,
  kZeroState = 2,
  kUnmapped = 3,
  kFullyPresent = 6,
  kPartiallyPresent = 7,
};
inline constexpr uint64_t kStateMask = 7;
inline constexpr uint64_t kOffsetMask = ~(kMiB - 1);
inline constexpr uint64_t kReservedMask = (kMiB - 1) & ~kStateMask;

inline constexpr uint64_t kMaxDiskBytes = 64ull << 40;
/// Ours, not the format's: a place in the file is kept as MiB in 29 bits.
inline constexpr uint64_t kMaxFileBytes = uint64_t{1} << 49;
inline constexpr uint32_t kMaxBlockBytes = 256u << 20;
inline constexpr uint64_t kBitmapBytes = kMiB;  ///< a sector bitmap block

/// Payload blocks between two sector bitmap entries of the BAT.
constexpr uint64_t ChunkRatio(uint32_t logical_sector, uint32_t block_size) {
  return (uint64_t{1} << 23) * logical_sector / block_size;
}
constexpr uint64_t BlockCount(uint64_t disk_bytes, uint32_t block_size) {
  return (disk_bytes + block_size - 1) / block_size;
}
/// Entries of a fixed or dynamic disk's BAT.
constexpr uint64_t BatEntryCount(uint64_t blocks, uint64_t chunk_ratio) {
  return blocks + (blocks - 1) / chunk_ratio;
}
/// Entries of a differencing disk's BAT: whole chunks, each with its sector bitmap.
constexpr uint64_t DifferencingBatEntryCount(uint64_t blocks, uint64_t chunk_ratio) {
  return (blocks + chunk_ratio - 1) / chunk_ratio * (chunk_ratio + 1);
}
constexpr uint64_t BatIndex(uint64_t block, uint64_t chunk_ratio) {
  return block + block / chunk_ratio;
}

/// CRC-32C (Castagnoli). "123456789" gives 0xE3069283.
uint32_t Crc32c(std::span<const uint8_t> bytes);

/// The same, of bytes that come in parts.
class Crc32cSum {
 public:
  void Add(std::span<const uint8_t> bytes);
  uint32_t value() const { return ~crc_; }

 private:
  uint32_t crc_ = ~0u;
};

/// The checksum of a structure whose CRC field lies at byte 4.
uint32_t StructureChecksum(std::span<const uint8_t> bytes);

template <typename T>
T Load(std::span<const uint8_t> bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}
template <typename T>
void Store(std::span<uint8_t> bytes, size_t offset, const T& value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(T));
}

}  // namespace kvmbus::virtdev::vhdx
