// SPDX-License-Identifier: Apache-2.0
#include "vmm/hvs/hvs_check.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "vmm/hvs/hvs_check_keys.h"

namespace kvmbus::vmm {
namespace {

using hvs_check::Number;
using hvs_check::OwnCrc32Without;

class Checker {
 public:
  explicit Checker(int fd) : fd_(fd) {}

  std::vector<std::string> Run() {
    const off_t end = ::lseek(fd_, 0, SEEK_END);
    size_ = end < 0 ? 0 : static_cast<uint64_t>(end);
    if (size_ < 0x3000) {
      Fail("file", fmt::format("it has {} bytes; headers and object table take 12288", size_));
      return std::move(findings_);
    }
    Own(0, 0x2000, "headers");
    if (Headers()) {
      ReplayLog();
      ObjectTables();
      KeyTables();
      Disjoint();
    }
    return std::move(findings_);
  }

 private:
  struct Extent {
    uint64_t offset, size;
    std::string owner;
  };

  void Fail(const std::string& where, const std::string& what) {
    constexpr size_t kLimit = 100;
    if (findings_.size() < kLimit) findings_.push_back(where + ": " + what);
  }
  void Own(uint64_t offset, uint64_t size, const std::string& owner) {
    extents_.push_back({offset, size, owner});
  }
  bool Inside(uint64_t offset, uint64_t size) const {
    return offset <= size_ && size <= size_ - offset;
  }
  /// What does lie inside.
  std::string Get(uint64_t offset, uint64_t size) {
    std::string bytes(size, '\0');
    if (::pread(fd_, bytes.data(), size, static_cast<off_t>(offset)) != static_cast<ssize_t>(size))
      Fail("file", fmt::format("reading {:#x}+{:#x} failed", offset, size));
    return bytes;
  }

  bool Headers() {
    std::string copies[2];
    bool sound[2];
    for (const size_t i : {0, 1}) {
      const std::string where = fmt::format("header {}", i + 1);
      copies[i] = Get(i * 0x1000, 46);
      sound[i] = Number(copies[i], 0, 4) == 0x01282014 &&
                 Number(copies[i], 4, 4) == OwnCrc32Without(copies[i], 4);
      if (!sound[i]) Fail(where, "its signature or checksum is wrong");
    }
    if (!sound[0] && !sound[1]) return false;
    const uint64_t first = Number(copies[0], 8, 2), second = Number(copies[1], 8, 2);
    if (sound[0] && sound[1] && first == second) Fail("headers", "their sequences are the same");
    const bool wraps = (first == 0 && second == 0xffff) || (first == 0xffff && second == 0);
    header_ = copies[!sound[0] || (sound[1] && (second > first) != wraps) ? 1 : 0];
    if (Number(header_, 10, 4) != 0x0400)
      Fail("header", fmt::format("its format version is {:#x}", Number(header_, 10, 4)));
    alignment_ = Number(header_, 22, 4);
    if (alignment_ < 512 || alignment_ > 65536 || (alignment_ & (alignment_ - 1)) != 0) {
      Fail("header", fmt::format("its data alignment is {}", alignment_));
      alignment_ = 4096;
    }
    return true;
  }

  void ReplayLog() {
    const uint64_t offset = Number(header_, 26, 8), size = Number(header_, 34, 8);
    const uint64_t header_size = Number(header_, 42, 4);
    if (!Inside(offset, size) || offset % alignment_ != 0 || header_size < 34 + 28 ||
        header_size > size || header_size > (1 << 20))
      return Fail("replay log", fmt::format("{:#x}+{:#x} with a header of {} is no place for it",
                                            offset, size, header_size));
    Own(offset, size, "replay log");
    const std::string log = Get(offset, 34);
    if (Number(log, 0, 4) != 0x01110003 || Number(log, 4, 4) != OwnCrc32Without(log, 4))
      return Fail("replay log", "its signature or checksum is wrong");
    if (Number(log, 8, 4) != 0)
      Fail("replay log", fmt::format("{} entries wait to be replayed", Number(log, 8, 4)));
    if (Number(log, 13, 4) != (header_size - 34) / 28)
      Fail("replay log", fmt::format("it has room for {} entries and says {}",
                                     (header_size - 34) / 28, Number(log, 13, 4)));
  }

  void ObjectTables() {
    std::set<uint64_t> seen;
    uint64_t offset = 0x2000, size = std::max<uint64_t>(4096, alignment_);
    for (bool more = true; more;) {
      const std::string where = fmt::format("object table at {:#x}", offset);
      if (!seen.insert(offset).second) return Fail(where, "the chain leads to it again");
      if (!Inside(offset, size) || size > (1 << 20))
        return Fail(where, fmt::format("its {} bytes do not lie in the file", size));
      Own(offset, size, where);
      const std::string table = Get(offset, size);
      more = false;
      if (Number(table, 0, 4) != 0x01110001) return Fail(where, "its signature is wrong");
      const uint64_t count = Number(table, 4, 4);
      if (count != (size - 8) / 18)
        return Fail(where,
                    fmt::format("it has {} entries and room for {}", count, (size - 8) / 18));
      for (uint64_t i = 0; i < count; ++i) {
        const std::string entry = table.substr(8 + i * 18, 18);
        if (!ObjectEntry(fmt::format("{}, entry {}", where, i), entry, i + 1 == count)) continue;
        offset = Number(entry, 5, 8);
        size = Number(entry, 13, 4);
        more = true;
      }
    }
  }

  /// Whether it leads to the next table.
  bool ObjectEntry(const std::string& where, const std::string& entry, bool is_last) {
    const uint64_t type = Number(entry, 0, 1), flags = Number(entry, 17, 1);
    const uint64_t offset = Number(entry, 5, 8), size = Number(entry, 13, 4);
    if (Number(entry, 1, 4) != OwnCrc32Without(entry, 1)) Fail(where, "its checksum is wrong");
    if (type > 7) Fail(where, fmt::format("its type is {}", type));
    if (is_last && type > 1) Fail(where, "the last one is the next table's");
    if (type == 0) return false;
    if (offset % alignment_ != 0 || size % alignment_ != 0 || size == 0)
      Fail(where, fmt::format("{:#x}+{:#x} is not aligned to {}", offset, size, alignment_));
    if (type == 4) return false;
    if ((flags & 1) == 0) Fail(where, "it is in use and not flagged as allocated");
    if (type == 1) {
      if (!is_last) Fail(where, "only the last one leads to a table");
      return is_last;
    }
    if (!Inside(offset, size)) {
      Fail(where, fmt::format("{:#x}+{:#x} lies past the end of the file", offset, size));
      return false;
    }
    Own(offset, size, where);
    if (type == 2) key_tables_[offset] = size;
    if (type == 3) objects_[offset] = size;
    return false;
  }

  void KeyTables() {
    hvs_check::Keys keys([this](const auto& where, const auto& what) { Fail(where, what); },
                         objects_);
    for (const auto& [offset, size] : key_tables_) {
      if (size > (1 << 20))
        Fail(fmt::format("key table at {:#x}", offset), fmt::format("it has {} bytes", size));
      else
        keys.AddTable(Get(offset, size), offset);
    }
    keys.Finish();
  }

  void Disjoint() {
    std::sort(extents_.begin(), extents_.end(),
              [](const Extent& a, const Extent& b) { return a.offset < b.offset; });
    for (size_t i = 1; i < extents_.size(); ++i) {
      if (extents_[i - 1].offset + extents_[i - 1].size > extents_[i].offset)
        Fail(extents_[i].owner, fmt::format("it overlaps {}", extents_[i - 1].owner));
    }
  }

  const int fd_;
  uint64_t size_ = 0;
  uint64_t alignment_ = 4096;
  std::string header_;
  std::vector<Extent> extents_;
  std::map<uint64_t, uint64_t> key_tables_, objects_;  ///< size by offset
  std::vector<std::string> findings_;
};

}  // namespace

std::vector<std::string> CheckHvs(int fd) { return Checker(fd).Run(); }

}  // namespace kvmbus::vmm
