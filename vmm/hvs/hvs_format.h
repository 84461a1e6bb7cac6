// SPDX-License-Identifier: Apache-2.0
/// \file
/// HyperVStorage on disk, little-endian and packed. Two headers, at 8192 the first object table,
/// which leads to everything else: key tables, objects, further object tables.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

namespace kvmbus::vmm::hvs {

inline constexpr uint64_t kHeaderOffset[2] = {0, 0x1000};
inline constexpr uint64_t kRootTableOffset = 0x2000;
inline constexpr uint32_t kAlignment = 4096;  ///< what we write
inline constexpr uint32_t kMaxAlignment = 65536;
inline constexpr uint32_t kTableBytes = 4096;  ///< of an object table or a key table that we write

inline constexpr uint32_t kHeaderSignature = 0x01282014;
inline constexpr uint32_t kObjectTableSignature = 0x01110001;
inline constexpr uint32_t kReplayLogSignature = 0x01110003;
inline constexpr uint16_t kKeyTableSignature = 0x0002;

inline constexpr uint32_t kVersion = 0x0400;        ///< what we write
inline constexpr uint32_t kOldestVersion = 0x0300;  ///< that we read: the layout is the same
inline constexpr uint32_t kEntryChecksumVersion =
    0x0301;                                        ///< object table entries have a right one
inline constexpr uint32_t kOrderVersion = 0x0400;  ///< insertion sequences order siblings

inline constexpr uint32_t kMaxDepth = 64;  ///< of keys; ours, the format has no limit
/// Of all key tables together; ours, so that what is written can be read, and what is hostile takes
/// no more. It is enough for the blocks of 1.3 TiB of memory.
inline constexpr uint64_t kMaxTreeBytes = 64u << 20;
inline constexpr uint32_t kMaxNameBytes = 254;  ///< without the NUL
inline constexpr uint32_t kInlineBytes = 2048;  ///< a value of this size is an object

#pragma pack(push, 1)
struct Header {
  uint32_t signature;
  uint32_t checksum;  ///< CRC-32 of the structure with this field zero; so are the others
  uint16_t sequence;
  uint32_t format_version;
  uint32_t data_version;
  uint32_t flags;
  uint32_t data_alignment;
  uint64_t replay_log_offset;
  uint64_t replay_log_size;
  uint32_t replay_log_header_size;  ///< with its entries
};
static_assert(sizeof(Header) == 46);

struct ObjectTableHeader {
  uint32_t signature;
  uint32_t entries;
};
struct ObjectEntry {
  uint8_t type;
  uint32_t checksum;
  uint64_t offset;
  uint32_t size;  ///< a multiple of the alignment
  uint8_t flags;
};
static_assert(sizeof(ObjectTableHeader) == 8 && sizeof(ObjectEntry) == 18);

struct KeyTableHeader {
  uint16_t signature;
  uint16_t index;  ///< from 1; of two with the same the later sequence counts
  uint16_t sequence;
  uint32_t checksum;  ///< of this header alone
};
struct KeyEntry {
  uint8_t type;
  uint8_t flags;
  uint32_t size;  ///< of header, name, data and what is left over
  uint16_t parent_table;
  uint32_t parent_offset;  ///< in its table, whose header counts; 0 with table 0: the root
  uint32_t checksum;       ///< of header, name and data
  uint32_t insertion_sequence;
  uint8_t name_size;  ///< with its NUL
};
static_assert(sizeof(KeyTableHeader) == 10 && sizeof(KeyEntry) == 21);
struct NodeData {
  uint64_t change_tracking_sequence;
  uint32_t next_insertion_sequence;
};
struct ObjectPointer {
  uint32_t size;
  uint64_t offset;
};
static_assert(sizeof(NodeData) == 12 && sizeof(ObjectPointer) == 12);

struct ReplayLogHeader {
  uint32_t signature;
  uint32_t checksum;
  uint32_t current_entries;
  uint8_t reserved;
  uint32_t max_entries;
  uint8_t change_tracking_enabled;
  uint64_t change_tracking_offset;
  uint32_t change_tracking_size;
  uint32_t change_tracking_used;
};
static_assert(sizeof(ReplayLogHeader) == 34);
/// Known sources disagree about the order of the fields; its checksum tells.
struct ReplayEntryChecksumFirst {
  uint32_t checksum;
  uint64_t destination;
  uint32_t size;
  uint64_t offset;  ///< of the data, from the log's start
  uint32_t data_checksum;
};
struct ReplayEntryChecksumLast {
  uint64_t destination;
  uint32_t size;
  uint64_t offset;
  uint32_t checksum;
  uint32_t data_checksum;
};
static_assert(sizeof(ReplayEntryChecksumFirst) == 28 && sizeof(ReplayEntryChecksumLast) == 28);
#pragma pack(pop)

enum class ObjectType : uint8_t {
  kEmpty = 0,
  kObjectTable = 1,
  kKeyTable = 2,
  kFileObject = 3,
  kFree = 4,
};
inline constexpr uint8_t kObjectAllocated = 1;  ///< flag of an entry that is not empty

enum class KeyType : uint8_t {
  kFree = 1,
  kInt = 3,
  kUInt = 4,
  kDouble = 5,
  kString = 6,
  kArray = 7,
  kBool = 8,
  kNode = 9,
};
inline constexpr uint8_t kKeyIsObject = 1;

/// Of a table, the last one of which leads to the next table.
inline constexpr uint32_t kObjectEntries =
    (kTableBytes - sizeof(ObjectTableHeader)) / sizeof(ObjectEntry);
static_assert(kObjectEntries == 227);

/// CRC-32 as zlib has it: "123456789" gives 0xCBF43926.
uint32_t Crc32(std::string_view bytes, uint32_t before = 0);

/// Of a structure with its field `checksum` zero.
template <typename T>
uint32_t ChecksumOf(T structure) {
  structure.checksum = 0;
  return Crc32({reinterpret_cast<const char*>(&structure), sizeof(T)});
}

/// Of 16-bit sequences, which begin again at 0 after 65535.
constexpr bool IsLater(uint16_t sequence, uint16_t than) {
  if (sequence == 0 && than == 0xffff) return true;
  if (sequence == 0xffff && than == 0) return false;
  return sequence > than;
}

constexpr uint64_t AlignUp(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

template <typename T>
T Load(std::string_view bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}
template <typename T>
std::string_view BytesOf(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(T)};
}

}  // namespace kvmbus::vmm::hvs
