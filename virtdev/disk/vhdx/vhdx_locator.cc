// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_locator.h"

#include <map>
#include <optional>

#include "virtdev/disk/vhdx/vhdx_format.h"
#include "vmm/text/utf16.h"

namespace kvmbus::virtdev::vhdx {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;
using PathKind = ParentReference::Path::Kind;

constexpr const char* kLinkage = "parent_linkage";
constexpr const char* kLinkage2 = "parent_linkage2";

/// In the order in which they are tried.
constexpr std::pair<const char*, PathKind> kPathKeys[] = {
    {"relative_path", PathKind::kRelative},
    {"volume_path", PathKind::kVolume},
    {"absolute_win32_path", PathKind::kAbsolute}};

using Entries = std::map<std::string, std::string>;

Result<std::string> TextAt(std::span<const uint8_t> item, uint64_t first, uint32_t offset,
                           uint16_t length, uint32_t number, const char* what) {
  if (offset < first || offset > item.size() || length > item.size() - offset)
    return MakeError(Code::kDataLoss, "parent locator: {} {} at {:#x}+{:#x} lies outside of it",
                     what, number, offset, length);
  const auto bytes = item.subspan(offset, length);
  const auto text = vmm::Utf16ToUtf8(bytes, std::endian::little);
  // What follows a NUL would be there for one reader and not for another.
  bool has_nul = false;
  for (size_t at = 0; at + 1 < bytes.size(); at += 2)
    has_nul = has_nul || (bytes[at] == 0 && bytes[at + 1] == 0);
  if (!text || has_nul)
    return MakeError(Code::kDataLoss, "parent locator: {} {} is not UTF-16", what, number);
  return *text;
}

Result<Entries> ParseEntries(std::span<const uint8_t> item) {
  if (item.size() < sizeof(ParentLocatorHeader) || item.size() > kMaxLocatorBytes)
    return MakeError(Code::kDataLoss, "parent locator: {} bytes; {} to {} are allowed", item.size(),
                     sizeof(ParentLocatorHeader), kMaxLocatorBytes);
  const auto header = Load<ParentLocatorHeader>(item, 0);
  if (header.type != kVhdxParentLocator)
    return MakeError(Code::kUnimplemented, "a parent locator of type {}; known is {}",
                     header.type.ToString(), kVhdxParentLocator.ToString());
  const uint64_t first =
      sizeof(header) + uint64_t{header.key_value_count} * sizeof(ParentLocatorEntry);
  if (header.key_value_count == 0 || header.key_value_count > kMaxLocatorKeys ||
      first > item.size())
    return MakeError(Code::kDataLoss, "parent locator: {} entries in {} bytes",
                     header.key_value_count, item.size());
  Entries entries;
  for (uint32_t i = 0; i < header.key_value_count; ++i) {
    const auto entry =
        Load<ParentLocatorEntry>(item, sizeof(header) + size_t{i} * sizeof(ParentLocatorEntry));
    std::string key = TRY(TextAt(item, first, entry.key_offset, entry.key_length, i, "key"));
    std::string value =
        TRY(TextAt(item, first, entry.value_offset, entry.value_length, i, "value"));
    if (key.empty() || value.empty())
      return MakeError(Code::kDataLoss, "parent locator: entry {} is empty", i);
    if (!entries.emplace(std::move(key), std::move(value)).second)
      return MakeError(Code::kDataLoss, "parent locator: the key of entry {} stands twice", i);
  }
  return entries;
}

Result<vmm::Guid> LinkageOf(const Entries& entries, const char* key) {
  const auto guid = vmm::Guid::Parse(entries.at(key));
  if (!guid) return MakeError(Code::kDataLoss, "parent locator: {} is no GUID", key);
  return *guid;
}

}  // namespace

Result<ParentReference> ParseParentLocator(std::span<const uint8_t> item) {
  const Entries entries = TRY(ParseEntries(item));
  ParentReference parent;
  if (entries.count(kLinkage) == 0)
    return MakeError(Code::kDataLoss, "parent locator: there is no {}", kLinkage);
  parent.linkage.push_back(TRY(LinkageOf(entries, kLinkage)));
  // It would be the identity of an image that has none.
  if (parent.linkage[0].IsZero())
    return MakeError(Code::kDataLoss, "parent locator: {} is zero", kLinkage);
  if (entries.count(kLinkage2) != 0) {
    const vmm::Guid second = TRY(LinkageOf(entries, kLinkage2));
    if (!second.IsZero() && second != parent.linkage[0]) parent.linkage.push_back(second);
  }
  for (const auto& [key, kind] : kPathKeys) {
    const auto at = entries.find(key);
    if (at == entries.end()) continue;
    for (const char c : at->second) {
      if (static_cast<unsigned char>(c) < ' ')
        return MakeError(Code::kDataLoss, "parent locator: {} has a control character", key);
    }
    parent.paths.push_back({kind, at->second});
  }
  if (parent.paths.empty()) return Error(Code::kDataLoss, "parent locator: there is no path");
  return parent;
}

Result<std::vector<uint8_t>> BuildParentLocator(const ParentReference& parent) {
  std::vector<std::pair<std::string, std::string>> entries;
  for (size_t i = 0; i < parent.linkage.size(); ++i)
    entries.emplace_back(i == 0 ? kLinkage : kLinkage2, "{" + parent.linkage[i].ToString() + "}");
  for (const ParentReference::Path& path : parent.paths) {
    for (const auto& [key, kind] : kPathKeys) {
      if (kind == path.kind) entries.emplace_back(key, path.text);
    }
  }
  std::vector<uint8_t> item(sizeof(ParentLocatorHeader) +
                            entries.size() * sizeof(ParentLocatorEntry));
  Store(item, 0, ParentLocatorHeader{kVhdxParentLocator, 0, static_cast<uint16_t>(entries.size())});
  size_t number = 0;
  for (const auto& [key, value] : entries) {
    const auto wide_key = vmm::Utf8ToUtf16(key, std::endian::little);
    const auto wide_value = vmm::Utf8ToUtf16(value, std::endian::little);
    constexpr size_t kMaxValue = 32767 * 2;  // Windows' longest path
    if (!wide_key || !wide_value || wide_value->size() > kMaxValue ||
        value.find('\0') != std::string::npos)
      return MakeError(Code::kInvalidArgument,
                       "the path '{}' cannot stand in a differencing image: it is too long or not "
                       "UTF-8; use another one",
                       value);
    const auto at = static_cast<uint32_t>(item.size());
    const auto key_length = static_cast<uint16_t>(wide_key->size());
    Store(item, sizeof(ParentLocatorHeader) + number++ * sizeof(ParentLocatorEntry),
          ParentLocatorEntry{at, at + key_length, key_length,
                             static_cast<uint16_t>(wide_value->size())});
    item.insert(item.end(), wide_key->begin(), wide_key->end());
    item.insert(item.end(), wide_value->begin(), wide_value->end());
  }
  if (item.size() > kMaxLocatorBytes)
    return Error(Code::kInvalidArgument,
                 "the paths of the parent are too long for a differencing image; use shorter ones");
  return item;
}

}  // namespace kvmbus::virtdev::vhdx
