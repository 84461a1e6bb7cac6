// SPDX-License-Identifier: Apache-2.0
// References: UEFI specification 2.10, chapter 5 "GUID Partition Table Disk Layout"; the MBR's four
// entries as there in 5.2.
#include "virtdev/disk/tools/partition_table.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "virtdev/disk/tools/image_io.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Result;
using Bytes = std::vector<uint8_t>;

#pragma pack(push, 1)
struct MbrEntry {
  uint8_t boot;
  uint8_t first_chs[3];
  uint8_t type;
  uint8_t last_chs[3];
  uint32_t first_sector;
  uint32_t sectors;
};
static_assert(sizeof(MbrEntry) == 16);

struct GptHeader {
  uint64_t signature;
  uint32_t revision;
  uint32_t header_bytes;
  uint32_t header_crc;  ///< of header_bytes, with this field zero
  uint32_t reserved;
  uint64_t own_sector;
  uint64_t other_sector;  ///< of the other copy
  uint64_t first_usable;
  uint64_t last_usable;
  uint8_t disk_guid[16];
  uint64_t entries_sector;
  uint32_t entry_count;
  uint32_t entry_bytes;
  uint32_t entries_crc;
};
static_assert(sizeof(GptHeader) == 92);

/// The start of an entry.
struct GptEntry {
  uint8_t type[16];  ///< zero: unused
  uint8_t id[16];
  uint64_t first_sector;
  uint64_t last_sector;
};
#pragma pack(pop)

constexpr size_t kMbrEntries = 446;
constexpr size_t kMbrSignature = 510;
constexpr uint8_t kProtective = 0xee;
constexpr uint8_t kWindowsDynamic = 0x42;
constexpr uint64_t kGptSignature = 0x5452415020494645;  // "EFI PART"
/// The usual 128 entries have 16 KiB.
constexpr uint64_t kMaxEntriesBytes = 1u << 20;

uint32_t Crc(std::span<const uint8_t> bytes) {
  return ::crc32_gzip_refl(0, bytes.data(), bytes.size());
}

/// A GPT's first copy.
struct Gpt {
  Bytes header;  ///< its sector
  Bytes entries;
  std::string flaw;  ///< "": it is whole, and its numbers can be

  GptHeader head() const {
    GptHeader head;
    std::memcpy(&head, header.data(), sizeof(head));
    return head;
  }
};

class TableReader {
 public:
  explicit TableReader(Image& image)
      : image_(image),
        sector_(image.info().logical_sector_bytes),
        disk_sectors_(image.info().size_bytes / sector_) {}

  Result<PartitionTable> Read() {
    const Bytes mbr = TRY(Sectors(0, 1));
    if (mbr[kMbrSignature] != 0x55 || mbr[kMbrSignature + 1] != 0xaa) return Unknown();
    uint64_t end = 0;
    bool protective = false;
    for (size_t i = 0; i < 4; ++i) {
      MbrEntry entry;
      std::memcpy(&entry, mbr.data() + kMbrEntries + i * sizeof(entry), sizeof(entry));
      // Code where the entries should be: the boot sector of a file system that has no partition.
      if (entry.boot != 0 && entry.boot != 0x80) return Unknown();
      if (entry.type == 0 || entry.sectors == 0) continue;
      if (entry.type == kProtective) {
        protective = true;
        continue;
      }
      end = std::max(end, uint64_t{entry.first_sector} + entry.sectors);
      // Its database lies behind the partitions, in the disk's last mebibyte.
      if (entry.type == kWindowsDynamic) end = std::max(end, disk_sectors_);
    }
    if (protective) return GptTable(end);
    if (end == 0) return Unknown();
    return PartitionTable{PartitionTable::Kind::kMbr, end * sector_, ""};
  }

  Result<Gpt> ReadGpt() {
    Gpt gpt;
    if (disk_sectors_ < 3) return Flawed("the disk is too small for one");
    gpt.header = TRY(Sectors(1, 1));
    const GptHeader head = gpt.head();
    if (head.signature != kGptSignature || head.header_bytes < sizeof(GptHeader) ||
        head.header_bytes > sector_)
      return Flawed("its header has no signature");
    Bytes summed(gpt.header.begin(), gpt.header.begin() + head.header_bytes);
    std::memset(summed.data() + offsetof(GptHeader, header_crc), 0, sizeof(uint32_t));
    if (Crc(summed) != head.header_crc) return Flawed("its header's checksum is wrong");
    const uint64_t bytes = uint64_t{head.entry_count} * head.entry_bytes;
    const uint64_t sectors = (bytes + sector_ - 1) / sector_;
    if (head.own_sector != 1 || head.first_usable >= disk_sectors_ ||
        head.last_usable < head.first_usable || head.entry_bytes < 128 ||
        head.entry_bytes % 8 != 0 || bytes == 0 || bytes > kMaxEntriesBytes ||
        head.entries_sector < 2 || head.entries_sector > head.first_usable ||
        sectors > head.first_usable - head.entries_sector)
      return Flawed("its header's numbers cannot be");
    gpt.entries = TRY(Sectors(head.entries_sector, sectors));
    if (Crc(std::span(gpt.entries).first(bytes)) != head.entries_crc)
      return Flawed("its entries' checksum is wrong");
    return gpt;
  }

 private:
  static Gpt Flawed(const char* what) { return {{}, {}, what}; }
  static PartitionTable Unknown() {
    return {PartitionTable::Kind::kNone, 0, "it has no partition table"};
  }

  Result<Bytes> Sectors(uint64_t first, uint64_t count) {
    Bytes bytes(count * sector_);
    TRY_CTX(ReadImage(image_, first * sector_, bytes), "reading the partition table");
    return bytes;
  }

  Result<PartitionTable> GptTable(uint64_t end) {
    const Gpt gpt = TRY(ReadGpt());
    if (!gpt.flaw.empty())
      return PartitionTable{PartitionTable::Kind::kNone, 0,
                            "its GPT is damaged (" + gpt.flaw + "): a guest can repair it"};
    const GptHeader head = gpt.head();
    end = std::max(end, head.first_usable + 1);
    for (uint32_t i = 0; i < head.entry_count; ++i) {
      GptEntry entry;
      std::memcpy(&entry, gpt.entries.data() + uint64_t{i} * head.entry_bytes, sizeof(entry));
      if (IsZero(entry.type)) continue;
      end = std::max(end, std::min(entry.last_sector, disk_sectors_) + 1);
    }
    const uint64_t copy = gpt.entries.size() / sector_ + 1;
    return PartitionTable{PartitionTable::Kind::kGpt, (end + copy) * sector_, ""};
  }

  Image& image_;
  const uint64_t sector_, disk_sectors_;
};

/// A header's sector with other numbers, and their checksum.
Bytes HeaderSector(const Gpt& gpt, uint64_t own, uint64_t other, uint64_t entries,
                   uint64_t last_usable) {
  Bytes sector = gpt.header;
  GptHeader head = gpt.head();
  head.own_sector = own;
  head.other_sector = other;
  head.entries_sector = entries;
  head.last_usable = last_usable;
  head.header_crc = 0;
  std::memcpy(sector.data(), &head, sizeof(head));
  head.header_crc = Crc(std::span(sector).first(head.header_bytes));
  std::memcpy(sector.data(), &head, sizeof(head));
  return sector;
}

/// The MBR that keeps others off a GPT disk says how long that one is.
Result<void> FitProtectiveEntry(Image& image, uint64_t sector_bytes, uint64_t disk_sectors) {
  Bytes mbr(sector_bytes);
  TRY(ReadImage(image, 0, mbr));
  for (size_t i = 0; i < 4; ++i) {
    MbrEntry entry;
    uint8_t* at = mbr.data() + kMbrEntries + i * sizeof(entry);
    std::memcpy(&entry, at, sizeof(entry));
    if (entry.type != kProtective || entry.first_sector >= disk_sectors) continue;
    const uint64_t rest = disk_sectors - entry.first_sector;
    entry.sectors = static_cast<uint32_t>(std::min<uint64_t>(entry.sectors, rest));
    std::memcpy(at, &entry, sizeof(entry));
  }
  return WriteImage(image, 0, mbr);
}

}  // namespace

Result<PartitionTable> ReadPartitionTable(Image& image) { return TableReader(image).Read(); }

Result<void> FitGpt(Image& image, uint64_t disk_bytes) {
  const uint64_t sector = image.info().logical_sector_bytes;
  const Gpt gpt = TRY(TableReader(image).ReadGpt());
  if (!gpt.flaw.empty())
    return vmm::MakeError(vmm::Code::kDataLoss, "its GPT is damaged: {}", gpt.flaw);
  const uint64_t last = disk_bytes / sector - 1;
  const uint64_t entries = last - gpt.entries.size() / sector;
  TRY_VOID(WriteImage(image, entries * sector, gpt.entries));
  TRY_VOID(WriteImage(image, last * sector, HeaderSector(gpt, last, 1, entries, entries - 1)));
  TRY_VOID(image.Flush());
  const uint64_t own_entries = gpt.head().entries_sector;
  TRY_VOID(WriteImage(image, sector, HeaderSector(gpt, 1, last, own_entries, entries - 1)));
  TRY_VOID(FitProtectiveEntry(image, sector, disk_bytes / sector));
  return image.Flush();
}

}  // namespace kvmbus::virtdev
