// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_check_parent.h"

#include <fmt/format.h>

#include <map>

#include "virtdev/disk/vhdx/vhdx_check_log.h"
#include "virtdev/disk/vhdx/vhdx_format.h"

namespace kvmbus::virtdev::check {
namespace {

using namespace vhdx;
using PathKind = ParentReference::Path::Kind;

/// Decodes what it can; false if that was not all.
bool Decode(std::span<const uint8_t> bytes, std::string* text) {
  bool good = bytes.size() % 2 == 0;
  uint32_t high = 0;
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    uint32_t c = bytes[i] + bytes[i + 1] * 256u;
    if (c < 0x20) good = false;
    if (c >= 0xd800 && c < 0xdc00) {
      good = good && high == 0;
      high = c;
      continue;
    }
    if (c >= 0xdc00 && c < 0xe000) {
      if (high == 0) {
        good = false;
        continue;
      }
      c = 0x10000 + (high - 0xd800) * 0x400 + (c - 0xdc00);
    } else if (high != 0) {
      good = false;
    }
    high = 0;
    const int tail = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    constexpr uint32_t kLead[] = {0, 0xc0, 0xe0, 0xf0};
    *text += static_cast<char>(kLead[tail] | c >> (6 * tail));
    for (int k = tail - 1; k >= 0; --k) *text += static_cast<char>(0x80 | (c >> (6 * k) & 0x3f));
  }
  return good && high == 0;
}

class LocatorReader {
 public:
  explicit LocatorReader(std::span<const uint8_t> item) : item_(item) {}

  Locator Read() {
    if (item_.size() < 20) {
      Fail("{} bytes", item_.size());
      return std::move(result_);
    }
    const auto type = Load<vmm::Guid>(item_, 0);
    if (type != kVhdxParentLocator) Fail("its type is {}", type.ToString());
    if (Load<uint16_t>(item_, 16) != 0) Fail("reserved bytes are not zero");
    const auto count = Load<uint16_t>(item_, 18);
    if (count == 0 || count > 256 || 20 + uint64_t{count} * 12 > item_.size()) {
      Fail("{} entries in {} bytes", count, item_.size());
      return std::move(result_);
    }
    for (uint32_t i = 0; i < count; ++i) Entry(i, 20 + uint64_t{count} * 12);
    Linkage();
    for (const auto& [key, kind] : {std::pair{"relative_path", PathKind::kRelative},
                                    {"volume_path", PathKind::kVolume},
                                    {"absolute_win32_path", PathKind::kAbsolute}}) {
      if (entries_.count(key) != 0) result_.parent.paths.push_back({kind, entries_[key]});
    }
    if (result_.parent.paths.empty()) Fail("there is no path");
    return std::move(result_);
  }

 private:
  template <typename... Args>
  void Fail(fmt::format_string<Args...> format, Args&&... args) {
    constexpr size_t kLimit = 20;
    if (result_.errors.size() < kLimit)
      result_.errors.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  void Entry(uint32_t number, uint64_t first) {
    const auto entry = Load<ParentLocatorEntry>(item_, 20 + size_t{number} * 12);
    std::string texts[2];
    for (int i = 0; i < 2; ++i) {
      const uint64_t offset = i == 0 ? entry.key_offset : entry.value_offset;
      const uint64_t length = i == 0 ? entry.key_length : entry.value_length;
      const char* what = i == 0 ? "key" : "value";
      if (length == 0 || offset < first || offset + length > item_.size())
        return Fail("{} {} at {:#x}+{:#x} is no place in it", what, number, offset, length);
      if (!Decode(item_.subspan(offset, length), &texts[i]))
        Fail("{} {} is not UTF-16 text", what, number);
    }
    if (!entries_.emplace(texts[0], texts[1]).second) Fail("key {} stands twice", number);
  }

  void Linkage() {
    if (entries_.count("parent_linkage") == 0) Fail("there is no parent_linkage");
    for (const char* key : {"parent_linkage", "parent_linkage2"}) {
      if (entries_.count(key) == 0) continue;
      const auto guid = vmm::Guid::Parse(entries_[key]);
      if (!guid)
        Fail("{} is no GUID", key);
      else if (!guid->IsZero())
        result_.parent.linkage.push_back(*guid);
      else if (std::string_view(key) == "parent_linkage")
        Fail("{} is zero", key);
    }
  }

  const std::span<const uint8_t> item_;
  std::map<std::string, std::string> entries_;
  Locator result_;
};

}  // namespace

Locator ReadLocator(std::span<const uint8_t> item) { return LocatorReader(item).Read(); }

KVMBUS_NO_COVERAGE uint64_t CountBits(std::span<const uint8_t> bitmap, uint64_t first,
                                      uint64_t count) {
  uint64_t set = 0;
  for (uint64_t bit = first; bit < first + count; ++bit) set += bitmap[bit / 8] >> (bit % 8) & 1;
  return set;
}

}  // namespace kvmbus::virtdev::check
