// SPDX-License-Identifier: Apache-2.0
// A strict validator of VHD files, written from the specification apart from the driver: it shares
// the structures' declarations with it and no code. It reports everything that it finds.
#include <algorithm>
#include <map>

#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/vhd/vhd_format.h"

namespace kvmbus::virtdev {
namespace {

using vhd::DynamicHeader;
using vhd::Footer;
using vmm::Result;

/// Of a million of blocks: their names are made when they are needed.
struct Extent {
  uint64_t offset, length;
  uint64_t owner;  ///< a BAT entry, or kNamed + a number in the list of names
};
constexpr uint64_t kNamed = uint64_t{1} << 63;

/// The sum that a checksum field should hold; on purpose another way than the driver's.
uint32_t SlowChecksum(std::span<const uint8_t> bytes, size_t field) {
  uint32_t sum = 0xffffffff;
  for (size_t i = 0; i < bytes.size(); ++i)
    if (i < field || i >= field + 4) sum -= bytes[i];
  return sum;
}

bool AnyBit(std::span<const uint8_t> bytes) {
  return std::any_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte != 0; });
}

class Checker {
 public:
  Checker(BlockFile& file, uint64_t size) : file_(file), size_(size), data_end_(size) {}

  std::vector<Finding> Run() {
    if (size_ < 1024) {
      Fail("file", "it has {} bytes; the smallest VHD has 1024", size_);
    } else if (Footers() && FooterFields()) {
      if (type_ == 2)
        Fixed();
      else if (Header())
        Blocks();
    }
    if (failed_) Fail("file", "a part of it could not be read");
    return std::move(findings_);
  }

 private:
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
    if (findings_.size() < kLimit) findings_.push_back({severity, where + ": " + what, where});
  }

  std::vector<uint8_t> Get(uint64_t offset, uint64_t length) {
    std::vector<uint8_t> bytes(length);
    if (!file_.Read(bytes, offset).ok()) failed_ = true;
    return bytes;
  }
  template <typename T>
  T GetStructure(uint64_t offset, size_t length = sizeof(T)) {
    T structure{};
    const auto bytes = Get(offset, length);
    std::memcpy(static_cast<void*>(&structure), bytes.data(), length);
    return structure;
  }

  static bool IsSound(const Footer& footer) {
    return footer.cookie == 0x636f6e6563746978 &&
           SlowChecksum(vhd::BytesOf(footer), 64) == footer.checksum;
  }
  static bool IsSparse(const Footer& footer) {
    return footer.disk_type == 3 || footer.disk_type == 4;
  }

  /// Which one counts; false if none does.
  bool Footers() {
    const auto copy = GetStructure<Footer>(0);
    const bool copy_sound = IsSound(copy) && IsSparse(copy);
    footer_ = GetStructure<Footer>(size_ - 512);
    data_end_ = size_ - 512;
    bool sound = IsSound(footer_);
    if (!sound) {
      const auto old = GetStructure<Footer>(size_ - 511, 511);
      if (IsSound(old)) {
        sound = true;
        footer_ = old;
        data_end_ = size_ - 511;
        Note("footer", "511 bytes long, as old programs wrote it");
      }
    }
    const bool stranger =
        sound && IsSparse(footer_) && copy_sound &&
        (footer_.unique_id != copy.unique_id || footer_.disk_type != copy.disk_type ||
         footer_.data_offset != copy.data_offset);
    if (!sound || stranger) {
      if (!copy_sound)
        return Fail("footer, footer copy", "neither is valid: no VHD, or its end is lost"), false;
      Note("footer",
           "not valid at the file's end: the copy at 0 replaces it when the image is "
           "opened for writing");
      footer_ = copy;
      data_end_ = size_;
    } else if (IsSparse(footer_) && !copy_sound) {
      Fail("footer copy", "not valid at 0");
    } else if (IsSparse(footer_) && std::memcmp(&footer_, &copy, sizeof(copy)) != 0) {
      if (DiffersInSizeAlone(copy))
        Note("footer copy",
             "has another size than the footer at the end, which counts: mended when the image is "
             "opened for writing");
      else
        Fail("footer copy", "differs from the footer at the end");
    }
    type_ = footer_.disk_type;
    disk_bytes_ = footer_.current_size;
    return true;
  }

  /// What a resize changes that was cut between the two.
  bool DiffersInSizeAlone(Footer copy) const {
    copy.current_size = footer_.current_size;
    copy.cylinders = footer_.cylinders;
    copy.heads = footer_.heads;
    copy.sectors_per_track = footer_.sectors_per_track;
    copy.creator_app = footer_.creator_app;
    copy.creator_version = footer_.creator_version;
    copy.creator_os = footer_.creator_os;
    copy.checksum = footer_.checksum;
    return std::memcmp(&footer_, &copy, sizeof(copy)) == 0;
  }

  bool FooterFields() {
    const uint32_t version = footer_.version;
    if (version != 0x10000) Fail("footer", "version {:#x}", version);
    if (type_ < 2 || type_ > 4) return Fail("footer", "disk type {}", type_), false;
    if ((footer_.features & 2) == 0) Note("footer", "features: the reserved bit 1 is not set");
    if ((footer_.features & ~3u) != 0)
      Note("footer", "features: {:#x} is unknown", uint32_t{footer_.features});
    if (footer_.saved_state != 0) Note("footer", "its virtual machine was saved");
    if (AnyBit(footer_.reserved)) Note("footer", "reserved bytes are not zero");
    if (footer_.unique_id.IsZero()) Note("footer", "it has no unique id");
    if (disk_bytes_ == 0 || disk_bytes_ % 512 != 0 || disk_bytes_ > 2040ull << 30)
      return Fail("footer", "disk size {}", disk_bytes_), false;
    CheckGeometry();
    return true;
  }

  void CheckGeometry() {
    const uint64_t cylinder = uint64_t{footer_.heads} * footer_.sectors_per_track * 512;
    const uint64_t capacity = cylinder * footer_.cylinders;
    const uint64_t reachable = std::min<uint64_t>(disk_bytes_, 65535ull * 16 * 255 * 512);
    if (capacity == 0)
      Note("footer", "no geometry: programs that go by it see an empty disk");
    else if (capacity > disk_bytes_)
      Note("footer", "the geometry holds {} bytes, the disk {}", capacity, disk_bytes_);
    else if (reachable - capacity >= cylinder)
      Note("footer", "the geometry holds {} bytes of {}: programs that go by it see less", capacity,
           disk_bytes_);
  }

  void Fixed() {
    if (footer_.data_offset != ~uint64_t{0})
      Note("footer", "the data offset of a fixed disk is {:#x}", uint64_t{footer_.data_offset});
    if (disk_bytes_ > data_end_)
      Fail("file", "it has {} bytes of a disk of {}", data_end_, disk_bytes_);
    else if (disk_bytes_ < data_end_)
      Note("file", "{} bytes between the disk's end and the footer", data_end_ - disk_bytes_);
  }

  bool IsPlace(uint64_t offset, uint64_t length) const {
    return offset >= 512 && offset <= data_end_ && length <= data_end_ - offset;
  }

  bool Header() {
    const uint64_t at = footer_.data_offset;
    if (at % 512 != 0 || !IsPlace(at, 1024))
      return Fail("footer", "the dynamic header at {:#x} is no place in the file", at), false;
    header_ = GetStructure<DynamicHeader>(at);
    if (header_.cookie != 0x6378737061727365)
      return Fail("dynamic header", "no signature at {:#x}", at), false;
    if (SlowChecksum(vhd::BytesOf(header_), 36) != header_.checksum)
      Fail("dynamic header", "checksum {:#x}", uint32_t{header_.checksum});
    if (header_.version != 0x10000)
      Fail("dynamic header", "version {:#x}", uint32_t{header_.version});
    if (header_.data_offset != ~uint64_t{0})
      Note("dynamic header", "data offset {:#x}", uint64_t{header_.data_offset});
    if (header_.reserved != 0 || AnyBit(header_.reserved2))
      Note("dynamic header", "reserved bytes are not zero");
    block_ = header_.block_size;
    if (block_ < 0x10000 || block_ > 0x10000000 || (block_ & (block_ - 1)) != 0)
      return Fail("dynamic header", "block size {}", block_), false;
    Own(0, 512, "the footer copy");
    Own(at, 1024, "the dynamic header");
    Locators();
    return true;
  }

  void Locators() {
    bool named = AnyBit(header_.parent_unicode_name);
    for (int i = 0; i < 8; ++i) {
      const vhd::ParentLocator& locator = header_.locators[i];
      const std::string where = fmt::format("parent locator {}", i + 1);
      if (locator.platform_code == 0) continue;
      if (type_ != 4) {
        Note(where, "in a disk without parent");
        continue;
      }
      if (!IsPlace(locator.data_offset, locator.data_length)) {
        Fail(where, "{:#x}+{:#x} is no place in the file", uint64_t{locator.data_offset},
             uint32_t{locator.data_length});
        continue;
      }
      named = named || locator.data_length != 0;
      if (locator.data_length != 0) Own(locator.data_offset, locator.data_length, where);
    }
    if (type_ != 4) return;
    Note("file", "a differencing disk: its parent is not checked");
    if (!named) Fail("dynamic header", "it names no parent");
    if (header_.parent_unique_id.IsZero()) Fail("dynamic header", "no unique id of the parent");
  }

  void Blocks() {
    const uint64_t blocks = disk_bytes_ / block_ + (disk_bytes_ % block_ != 0 ? 1 : 0);
    const uint64_t entries = header_.max_table_entries, table = header_.table_offset;
    if (entries < blocks) return Fail("BAT", "{} entries for {} blocks", entries, blocks);
    if (entries > blocks) Note("BAT", "{} entries for {} blocks", entries, blocks);
    if (table % 512 != 0 || !IsPlace(table, entries * 4))
      return Fail("BAT", "{:#x}+{:#x} is no place in the file", table, entries * 4);
    Own(table, entries * 4, "the BAT");
    constexpr uint64_t kBatch = 16384;
    for (uint64_t start = 0; start < entries; start += kBatch) {
      const uint64_t count = std::min(kBatch, entries - start);
      const auto bytes = Get(table + start * 4, count * 4);
      for (uint64_t i = 0; i < count; ++i) {
        const uint32_t sector = uint32_t{bytes[i * 4]} << 24 | uint32_t{bytes[i * 4 + 1]} << 16 |
                                uint32_t{bytes[i * 4 + 2]} << 8 | uint32_t{bytes[i * 4 + 3]};
        if (sector != 0xffffffff) Block(start + i, uint64_t{sector} * 512);
      }
    }
    if (holes_ != 0)
      Note("file",
           "{} blocks have sectors that were never written: they read as zeroes here, and "
           "as what lies there in programs that do not look at the bitmaps",
           holes_);
    Disjoint();
  }

  void Block(uint64_t index, uint64_t offset) {
    const uint64_t bits = block_ / 512, bitmap = (bits / 8 + 511) / 512 * 512;
    if (!IsPlace(offset, bitmap + block_))
      return Fail(EntryName(index), "its block at {:#x} is no place in the file of {} bytes",
                  offset, size_);
    extents_.push_back({offset, bitmap + block_, index});
    if (type_ != 3) return;
    const auto bytes = Get(offset, bits / 8);
    if (std::any_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte != 0xff; }))
      ++holes_;
  }

  /// No two owners of a byte; and how many bytes have none, beyond what alignment explains.
  void Disjoint() {
    std::sort(extents_.begin(), extents_.end(),
              [](const Extent& a, const Extent& b) { return a.offset < b.offset; });
    uint64_t unowned = 0, end = 0;
    const auto gap = [&unowned](uint64_t bytes) { unowned += bytes >= 4096 ? bytes : 0; };
    for (size_t i = 0; i < extents_.size(); ++i) {
      const Extent& extent = extents_[i];
      if (extent.offset < end)
        Fail(NameOf(extent), "at {:#x} it overlaps {}", extent.offset, NameOf(extents_[i - 1]));
      else
        gap(extent.offset - end);
      end = std::max(end, extent.offset + extent.length);
    }
    if (data_end_ > end) gap(data_end_ - end);
    if (unowned != 0) Note("file", "{} bytes of it belong to nothing", unowned);
  }

  static std::string EntryName(uint64_t index) { return fmt::format("BAT entry {}", index); }
  std::string NameOf(const Extent& extent) const {
    return extent.owner >= kNamed ? names_[extent.owner - kNamed] : EntryName(extent.owner);
  }
  void Own(uint64_t offset, uint64_t length, const std::string& name) {
    extents_.push_back({offset, length, kNamed + names_.size()});
    names_.push_back(name);
  }

  BlockFile& file_;
  const uint64_t size_;
  uint64_t data_end_;  // where the footer begins
  bool failed_ = false;
  std::vector<Finding> findings_;
  Footer footer_{};
  DynamicHeader header_{};
  uint32_t type_ = 0, block_ = 0;
  uint64_t disk_bytes_ = 0, holes_ = 0;
  std::vector<Extent> extents_;
  std::vector<std::string> names_;
};

}  // namespace

Result<std::vector<Finding>> CheckVhd(BlockFile& file) {
  const uint64_t size = TRY(file.Size());
  return Checker(file, size).Run();
}

}  // namespace kvmbus::virtdev
