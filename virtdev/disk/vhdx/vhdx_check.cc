// SPDX-License-Identifier: Apache-2.0
// A strict validator of VHDX files, written from the specification apart from the driver: it shares
// the structures' declarations with it and no code. It reads with small reads of its own and
// reports everything that it finds.
#include "virtdev/disk/vhdx/vhdx_check.h"

#include <algorithm>
#include <map>
#include <set>

#include "virtdev/disk/vhdx/vhdx_check_log.h"
#include "virtdev/disk/vhdx/vhdx_check_parent.h"
#include "virtdev/disk/vhdx/vhdx_format.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx;
using check::SlowChecksum;
using vmm::Result;

/// Of millions of blocks: their names are made when they are needed.
struct Extent {
  uint64_t offset, length;
  uint64_t owner;  ///< a BAT entry, or kNamed + a number in the list of names
};
constexpr uint64_t kNamed = uint64_t{1} << 63;

class Checker {
 public:
  Checker(BlockFile& file, uint64_t size) : view_(file, size) {}

  check::LayerReport Run() {
    if (view_.size() < 0x100000) {
      Fail("file", "it has {} bytes; the header area alone has 1 MiB", view_.size());
      return std::move(report_);
    }
    Own(0, 0x100000, "the header area");
    if (Headers() && Log()) {
      Regions();
      if (bat_.length != 0 && metadata_.length != 0 && Metadata()) Bat();
      Disjoint(std::move(extents_));
    }
    if (view_.failed()) Fail("file", "a part of it could not be read");
    report_.identity = header_.data_write_guid;
    report_.logical_sector = sector_;
    return std::move(report_);
  }

 private:
  struct Place {
    uint64_t offset = 0, length = 0;
  };

  template <typename... Args>
  void Fail(const std::string& where, fmt::format_string<Args...> format, Args&&... args) {
    Add(Finding::Severity::kError, where, fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void Note(const std::string& where, fmt::format_string<Args...> format, Args&&... args) {
    Add(Finding::Severity::kNote, where, fmt::format(format, std::forward<Args>(args)...));
  }
  void Add(Finding::Severity severity, const std::string& where, const std::string& what) {
    constexpr size_t kLimit = 100;
    auto& findings = report_.findings;
    if (findings.size() < kLimit) findings.push_back({severity, where + ": " + what, where, ""});
  }

  static bool AnyBit(std::span<const uint8_t> bytes) {
    return std::any_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte != 0; });
  }

  bool Headers() {
    if (Load<uint64_t>(view_.Get(0, 8), 0) != kFileSignature) {
      Fail("file", "no VHDX signature at 0");
      return false;
    }
    bool found = false;
    for (int i = 0; i < 2; ++i) {
      const std::string where = fmt::format("header {}", i + 1);
      const auto bytes = view_.Get(i == 0 ? 0x10000 : 0x20000, 4096);
      const auto header = Load<Header>(bytes, 0);
      if (header.signature != kHeaderSignature || SlowChecksum(bytes) != header.checksum) {
        Note(where, "not valid: a write of it was torn");
        continue;
      }
      if (AnyBit(std::span(bytes).subspan(sizeof(Header))))
        Fail(where, "reserved bytes are not zero");
      if (found && header.sequence_number == header_.sequence_number &&
          std::memcmp(&header, &header_, sizeof(header)) != 0)
        Fail(where, "both headers have the sequence number {}", header.sequence_number);
      if (!found || header.sequence_number > header_.sequence_number) header_ = header;
      found = true;
    }
    if (!found) {
      Fail("header 1, header 2", "neither is valid");
      return false;
    }
    if (header_.version != 1) Fail("header", "version {}", header_.version);
    if (header_.log_version != 0) Fail("header", "log version {}", header_.log_version);
    return true;
  }

  /// False if the log makes all the rest meaningless.
  bool Log() {
    if (header_.log_length == 0) {
      if (header_.log_guid.IsZero()) return true;
      Fail("log", "the header names it and gives it no place");
      return false;
    }
    if (header_.log_length % 0x100000 != 0 || header_.log_offset % 0x100000 != 0 ||
        header_.log_offset < 0x100000 || header_.log_offset > view_.size() ||
        header_.log_length > view_.size() - header_.log_offset) {
      Fail("log", "{:#x}+{:#x} is not a place in the file of {} bytes", header_.log_offset,
           header_.log_length, view_.size());
      return header_.log_guid.IsZero();
    }
    Own(header_.log_offset, header_.log_length, "the log");
    if (header_.log_guid.IsZero()) return true;
    const check::LogVerdict verdict = check::ReplayOver(&view_, header_);
    if (verdict.entries == 0) {
      Fail("log", "the header names it, and it has no valid entry");
      return false;
    }
    if (view_.file_size() < verdict.flushed_file_offset)
      Fail("file", "it has {} bytes and its log has seen {}: it was cut off", view_.file_size(),
           verdict.flushed_file_offset);
    Note("log", "not empty ({} entries up to {}): it is replayed when the image is opened",
         verdict.entries, verdict.newest);
    return true;
  }

  bool RegionTableIsValid(const std::vector<uint8_t>& table, int number) {
    const auto head = Load<RegionTableHeader>(table, 0);
    const std::string where = fmt::format("region table {}", number);
    if (head.signature != kRegionSignature || SlowChecksum(table) != head.checksum)
      return Fail(where, "wrong signature or checksum"), false;
    if (head.entry_count > 2047) return Fail(where, "{} entries", head.entry_count), false;
    if (head.reserved != 0) Fail(where, "reserved bytes are not zero");
    return true;
  }

  void Regions() {
    const auto first = view_.Get(0x30000, 0x10000), second = view_.Get(0x40000, 0x10000);
    const bool first_ok = RegionTableIsValid(first, 1), second_ok = RegionTableIsValid(second, 2);
    if (!first_ok && !second_ok) return;
    if (first_ok && second_ok && first != second)
      Fail("region table 1, region table 2", "they differ");
    const auto& table = first_ok ? first : second;
    std::set<vmm::Guid> seen;
    for (uint32_t i = 0; i < Load<uint32_t>(table, 8); ++i)
      RegionEntry(Load<RegionTableEntry>(table, 16 + size_t{i} * 32), &seen);
    if (bat_.length == 0) Fail("region table", "there is no BAT");
    if (metadata_.length == 0) Fail("region table", "there is no metadata");
  }

  void RegionEntry(const RegionTableEntry& entry, std::set<vmm::Guid>* seen) {
    const std::string where = "region " + entry.guid.ToString();
    if (!seen->insert(entry.guid).second) Fail(where, "stands twice in the table");
    if (entry.required & ~1u) Fail(where, "reserved flags are set ({:#x})", entry.required);
    const bool known = entry.guid == kBatRegion || entry.guid == kMetadataRegion;
    if (!known && (entry.required & 1)) Fail(where, "required, and unknown");
    if (entry.file_offset % 0x100000 != 0 || entry.length % 0x100000 != 0 || entry.length == 0 ||
        entry.file_offset < 0x100000 || entry.file_offset > view_.size() ||
        entry.length > view_.size() - entry.file_offset)
      return Fail(where, "{:#x}+{:#x} is not a place in the file of {} bytes", entry.file_offset,
                  entry.length, view_.size());
    Own(entry.file_offset, entry.length, where);
    if (entry.guid == kBatRegion) bat_ = {entry.file_offset, entry.length};
    if (entry.guid == kMetadataRegion) metadata_ = {entry.file_offset, entry.length};
  }

  template <typename T>
  bool Item(const vmm::Guid& id, const char* name, T* value) {
    const auto at = items_.find(id);
    if (at == items_.end()) return Fail("metadata", "there is no {}", name), false;
    if (at->second.length != sizeof(T))
      return Fail("metadata", "{} has {} bytes", name, at->second.length), false;
    *value = Load<T>(view_.Get(metadata_.offset + at->second.offset, sizeof(T)), 0);
    return true;
  }

  bool MetadataTable() {
    if (metadata_.length > 128ull << 20) Fail("metadata", "{} bytes", metadata_.length);
    const auto table = view_.Get(metadata_.offset, 0x10000);
    const auto head = Load<MetadataTableHeader>(table, 0);
    if (head.signature != kMetadataSignature || head.entry_count > 2047)
      return Fail("metadata", "the table is not valid"), false;
    if (head.reserved != 0 || AnyBit(head.reserved2))
      Fail("metadata", "reserved bytes of the table are not zero");
    std::vector<Extent> places;
    std::set<std::pair<bool, vmm::Guid>> seen;
    for (uint32_t i = 0; i < head.entry_count; ++i) {
      const auto entry = Load<MetadataTableEntry>(table, 32 + size_t{i} * 32);
      const std::string where = "metadata item " + entry.item_id.ToString();
      const bool user = entry.flags & 1;
      if (entry.item_id.IsZero() || entry.reserved != 0 || (entry.flags & ~7u) != 0 ||
          (entry.flags & 5u) == 5u)
        Fail(where, "flags {:#x} (reserved {:#x}) are not valid", entry.flags, entry.reserved);
      if (!seen.insert({user, entry.item_id}).second) Fail(where, "stands twice");
      if (!user && (entry.flags & 4) && kKnownItems.count(entry.item_id) == 0)
        Fail(where, "required, and unknown");
      if (!user && entry.item_id == kIncompleteFileItem) Fail(where, "creation was not finished");
      if (entry.length == 0 && entry.offset == 0) continue;
      if (entry.offset < 0x10000 || entry.length == 0 || entry.length > 0x100000 ||
          uint64_t{entry.offset} + entry.length > metadata_.length) {
        Fail(where, "{:#x}+{:#x} lies outside its region", entry.offset, entry.length);
        continue;
      }
      places.push_back({entry.offset, entry.length, Name(where)});
      if (!user) items_.emplace(entry.item_id, entry);
    }
    Disjoint(std::move(places));
    return true;
  }

  bool Metadata() {
    if (!MetadataTable()) return false;
    FileParameters parameters{};
    uint32_t physical = 0;
    vmm::Guid id;
    bool all = Item(kFileParametersItem, "file parameters", &parameters);
    all = Item(kVirtualDiskSizeItem, "virtual disk size", &disk_bytes_) && all;
    all = Item(kLogicalSectorSizeItem, "logical sector size", &sector_) && all;
    all = Item(kPhysicalSectorSizeItem, "physical sector size", &physical) && all;
    all = Item(kPage83Item, "page 83 data", &id) && all;
    if (!all) return false;
    block_ = parameters.block_size;
    has_parent_ = parameters.flags & 2;
    if (parameters.flags & ~3u) Fail("metadata", "file parameters' flags {:#x}", parameters.flags);
    if (has_parent_ != (items_.count(kParentLocatorItem) != 0))
      Fail("metadata", "the parent locator and the file parameters disagree");
    if (has_parent_) ParentLocator();
    if (physical != 512 && physical != 4096) Fail("metadata", "physical sector size {}", physical);
    const bool power = block_ != 0 && (block_ & (block_ - 1)) == 0;
    if (!power || block_ < 0x100000 || block_ > 0x10000000)
      return Fail("metadata", "block size {}", block_), false;
    if (sector_ != 512 && sector_ != 4096)
      return Fail("metadata", "logical sector size {}", sector_), false;
    if (disk_bytes_ == 0 || disk_bytes_ % sector_ != 0 || disk_bytes_ > 64ull << 40)
      return Fail("metadata", "virtual disk size {}", disk_bytes_), false;
    return true;
  }

  void ParentLocator() {
    const auto at = items_.find(kParentLocatorItem);
    if (at == items_.end()) return;
    if (at->second.flags != 4) Fail("parent locator", "flags {:#x}", at->second.flags);
    auto locator =
        check::ReadLocator(view_.Get(metadata_.offset + at->second.offset, at->second.length));
    for (const std::string& error : locator.errors) Fail("parent locator", "{}", error);
    report_.has_parent = locator.errors.empty();
    report_.parent = std::move(locator.parent);
  }

  void Bat() {
    ratio_ = (uint64_t{1} << 23) * sector_ / block_;
    const uint64_t blocks = disk_bytes_ / block_ + (disk_bytes_ % block_ != 0 ? 1 : 0);
    const uint64_t chunks = (blocks + ratio_ - 1) / ratio_;
    const uint64_t entries = has_parent_ ? chunks * (ratio_ + 1) : blocks + (blocks - 1) / ratio_;
    if (entries * 8 > bat_.length)
      return Fail("BAT", "the region has {} bytes, {} entries need {}", bat_.length, entries,
                  entries * 8);
    constexpr uint64_t kBatch = 8192;
    for (uint64_t start = 0; start < entries; start += kBatch) {
      const uint64_t count = std::min(kBatch, entries - start);
      const auto bytes = view_.Get(bat_.offset + start * 8, count * 8);
      for (uint64_t i = 0; i < count; ++i) {
        if (const auto entry = Load<uint64_t>(bytes, i * 8); entry != 0) BatEntry(start + i, entry);
      }
    }
    for (const uint64_t index : partial_) Partial(index);
  }

  /// A partly present block: its bitmap must exist, and should have some of its bits.
  void Partial(uint64_t index) {
    const std::string where = EntryName(index);
    const uint64_t chunk = index / (ratio_ + 1), in_chunk = index % (ratio_ + 1);
    const uint64_t bitmap_index = chunk * (ratio_ + 1) + ratio_;
    const auto bitmap = Load<uint64_t>(view_.Get(bat_.offset + bitmap_index * 8, 8), 0);
    if ((bitmap & 7) != 6)
      return Fail(where, "no sector bitmap for a partly present block (BAT entry {})",
                  bitmap_index);
    const uint64_t sectors = block_ / sector_;  // at least 256: whole bytes
    const uint64_t first_byte = (bitmap >> 20 << 20) + in_chunk * sectors / 8;
    if (first_byte > view_.size() || sectors / 8 > view_.size() - first_byte) return;  // told above
    const auto bits = view_.Get(first_byte, sectors / 8);
    const uint64_t start = (chunk * ratio_ + in_chunk) * block_;
    if (start >= disk_bytes_) return Note(where, "a block past the end of the disk");
    const uint64_t on_disk = std::min<uint64_t>(block_, disk_bytes_ - start) / sector_;
    if (check::CountBits(bits, 0, on_disk) == 0)
      Note(where, "a partly present block without a sector");
    if (check::CountBits(bits, on_disk, sectors - on_disk) != 0)
      Note(where, "its sector bitmap has bits past the end of the disk");
  }

  void BatEntry(uint64_t index, uint64_t entry) {
    const uint64_t state = entry & 7, offset = entry >> 20 << 20;
    if (entry & 0xffff8) Fail(EntryName(index), "reserved bits are set ({:#x})", entry);
    const bool bitmap = index % (ratio_ + 1) == ratio_;
    if (bitmap ? (state != 0 && state != 6)
               : (state == 4 || state == 5 || (state == 7 && !has_parent_)))
      return Fail(EntryName(index), "state {}", state);
    if (state == 2 && offset != 0) Fail(EntryName(index), "a block of zeroes has a place");
    if (state == 0 && offset != 0)
      Note(EntryName(index), "a block that is not present has a place");
    if (state != 6 && state != 7) return;
    if (state == 7) partial_.push_back(index);
    const uint64_t length = bitmap ? 0x100000 : block_;
    if (offset < 0x100000 || offset > view_.size() || length > view_.size() - offset)
      return Fail(EntryName(index), "its block at {:#x} lies outside the file of {} bytes", offset,
                  view_.size());
    extents_.push_back({offset, length, index});
  }

  void Disjoint(std::vector<Extent> extents) {
    const auto by_offset = [](const Extent& a, const Extent& b) { return a.offset < b.offset; };
    // They often are: blocks come in the order in which they were first written.
    if (!std::is_sorted(extents.begin(), extents.end(), by_offset))
      std::sort(extents.begin(), extents.end(), by_offset);
    for (size_t i = 1; i < extents.size(); ++i) {
      if (extents[i].offset < extents[i - 1].offset + extents[i - 1].length)
        Fail(NameOf(extents[i]), "at {:#x} it overlaps {}", extents[i].offset,
             NameOf(extents[i - 1]));
    }
  }

  static std::string EntryName(uint64_t index) { return fmt::format("BAT entry {}", index); }
  uint64_t Name(std::string name) {
    names_.push_back(std::move(name));
    return kNamed + names_.size() - 1;
  }
  std::string NameOf(const Extent& extent) const {
    return extent.owner >= kNamed ? names_[extent.owner - kNamed] : EntryName(extent.owner);
  }
  void Own(uint64_t offset, uint64_t length, std::string name) {
    extents_.push_back({offset, length, Name(std::move(name))});
  }

  static inline const std::set<vmm::Guid> kKnownItems = {
      kFileParametersItem,     kVirtualDiskSizeItem, kPage83Item,        kLogicalSectorSizeItem,
      kPhysicalSectorSizeItem, kParentLocatorItem,   kIncompleteFileItem};

  check::View view_;
  check::LayerReport report_;
  Header header_{};
  Place bat_, metadata_;
  std::map<vmm::Guid, MetadataTableEntry> items_;
  uint64_t disk_bytes_ = 0, ratio_ = 0;
  uint32_t block_ = 0, sector_ = 0;
  bool has_parent_ = false;
  std::vector<uint64_t> partial_;  // BAT entries
  std::vector<Extent> extents_;
  std::vector<std::string> names_;
};

}  // namespace

check::LayerReport check::CheckVhdxFile(BlockFile& file, uint64_t file_bytes) {
  return Checker(file, file_bytes).Run();
}

Result<std::vector<Finding>> CheckVhdx(BlockFile& file) {
  const uint64_t size = TRY(file.Size());
  return check::CheckVhdxFile(file, size).findings;
}

}  // namespace kvmbus::virtdev
