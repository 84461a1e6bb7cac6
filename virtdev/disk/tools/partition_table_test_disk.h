// SPDX-License-Identifier: Apache-2.0
/// \file
/// What tests put on a disk: an MBR or a GPT, as a guest's tools write it.
#pragma once

#include <gtest/gtest.h>
#include <isa-l/crc.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "virtdev/disk/tools/image_io.h"

namespace kvmbus::virtdev::partition_test {

inline constexpr uint64_t kGptEntries = 128, kGptEntryBytes = 128;

inline void Put(std::vector<uint8_t>& bytes, size_t at, uint64_t value, size_t length) {
  for (size_t i = 0; i < length; ++i) bytes[at + i] = static_cast<uint8_t>(value >> 8 * i);
}
inline uint64_t Get(const std::vector<uint8_t>& bytes, size_t at, size_t length) {
  uint64_t value = 0;
  for (size_t i = length; i-- > 0;) value = value << 8 | bytes[at + i];
  return value;
}
inline uint32_t Crc(const std::vector<uint8_t>& bytes, size_t length) {
  return ::crc32_gzip_refl(0, bytes.data(), length);
}

struct Partition {
  uint64_t first, count;  ///< sectors
  uint8_t type = 0x83;    ///< in an MBR
};

inline void PutMbr(Image& image, const std::vector<Partition>& partitions) {
  std::vector<uint8_t> mbr(image.info().logical_sector_bytes);
  for (size_t i = 0; i < partitions.size(); ++i) {
    const size_t at = 446 + 16 * i;
    mbr[at + 4] = partitions[i].type;
    Put(mbr, at + 8, partitions[i].first, 4);
    Put(mbr, at + 12, partitions[i].count, 4);
  }
  mbr[510] = 0x55, mbr[511] = 0xaa;
  ASSERT_TRUE(WriteImage(image, 0, mbr).ok());
}

inline std::vector<uint8_t> GptHeader(uint64_t sector_bytes, uint64_t own, uint64_t other,
                                      uint64_t entries_at, uint64_t first_usable,
                                      uint64_t last_usable, uint32_t entries_crc) {
  std::vector<uint8_t> header(sector_bytes);
  std::memcpy(header.data(), "EFI PART", 8);
  Put(header, 8, 0x10000, 4);
  Put(header, 12, 92, 4);
  Put(header, 24, own, 8);
  Put(header, 32, other, 8);
  Put(header, 40, first_usable, 8);
  Put(header, 48, last_usable, 8);
  std::fill_n(header.begin() + 56, 16, uint8_t{0xd1});
  Put(header, 72, entries_at, 8);
  Put(header, 80, kGptEntries, 4);
  Put(header, 84, kGptEntryBytes, 4);
  Put(header, 88, entries_crc, 4);
  Put(header, 16, Crc(header, 92), 4);
  return header;
}

/// With both copies and a protective MBR.
inline void PutGpt(Image& image, const std::vector<Partition>& partitions) {
  const uint64_t sector = image.info().logical_sector_bytes;
  const uint64_t last = image.info().size_bytes / sector - 1;
  const uint64_t table = kGptEntries * kGptEntryBytes / sector;
  std::vector<uint8_t> entries(table * sector);
  for (size_t i = 0; i < partitions.size(); ++i) {
    const size_t at = i * kGptEntryBytes;
    std::fill_n(entries.begin() + static_cast<ptrdiff_t>(at), 16, uint8_t{0xaf});
    std::fill_n(entries.begin() + static_cast<ptrdiff_t>(at) + 16, 16, static_cast<uint8_t>(i + 1));
    Put(entries, at + 32, partitions[i].first, 8);
    Put(entries, at + 40, partitions[i].first + partitions[i].count - 1, 8);
  }
  const uint32_t crc = Crc(entries, entries.size());
  PutMbr(image, {{1, last, 0xee}});
  const uint64_t first_usable = 2 + table, last_usable = last - table - 1;
  const auto header = [&](uint64_t own, uint64_t other, uint64_t entries_at) {
    return GptHeader(sector, own, other, entries_at, first_usable, last_usable, crc);
  };
  ASSERT_TRUE(WriteImage(image, sector, header(1, last, 2)).ok());
  ASSERT_TRUE(WriteImage(image, 2 * sector, entries).ok());
  ASSERT_TRUE(WriteImage(image, (last - table) * sector, entries).ok());
  ASSERT_TRUE(WriteImage(image, last * sector, header(last, 1, last - table)).ok());
}

/// A GPT that a guest takes as it is: both copies sound and alike, all of it on the disk, the
/// second copy where the first says.
inline void ExpectSoundGpt(Image& image) {
  const uint64_t sector = image.info().logical_sector_bytes;
  const uint64_t last = image.info().size_bytes / sector - 1;
  const auto read = [&](uint64_t first, uint64_t count) {
    std::vector<uint8_t> bytes(count * sector);
    EXPECT_TRUE(ReadImage(image, first * sector, bytes).ok());
    return bytes;
  };
  const auto sum = [](std::vector<uint8_t> header) {
    Put(header, 16, 0, 4);
    return Crc(header, 92);
  };
  const auto first = read(1, 1);
  ASSERT_EQ(Get(first, 16, 4), sum(first));
  const uint64_t other = Get(first, 32, 8), table = kGptEntries * kGptEntryBytes / sector;
  ASSERT_LE(other, last);
  ASSERT_LT(Get(first, 48, 8), other - table);
  const auto second = read(other, 1);
  ASSERT_EQ(Get(second, 16, 4), sum(second));
  EXPECT_EQ(Get(second, 24, 8), other);
  EXPECT_EQ(Get(second, 32, 8), 1u);
  const auto entries = read(2, table);
  EXPECT_EQ(Get(first, 88, 4), Crc(entries, entries.size()));
  EXPECT_TRUE(entries == read(Get(second, 72, 8), table));
  EXPECT_TRUE(std::equal(first.begin() + 40, first.begin() + 72, second.begin() + 40));
}

}  // namespace kvmbus::virtdev::partition_test
