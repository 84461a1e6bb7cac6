// SPDX-License-Identifier: Apache-2.0
// Where a differencing VHD says that its parent is.
#include "virtdev/disk/vhd/vhd_parent.h"

#include <algorithm>

#include "vmm/text/utf16.h"

namespace kvmbus::virtdev::vhd {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;
using Path = ParentReference::Path;

constexpr uint32_t kMaxLocatorBytes = 64u << 10;

std::optional<Path::Kind> KindOf(uint32_t code) {
  switch (code) {
    case kLocatorRelative:
    case kLocatorOldRelative:
      return Path::Kind::kRelative;
    case kLocatorAbsolute:
    case kLocatorOldAbsolute:
      return Path::Kind::kAbsolute;
    default:
      return std::nullopt;  // a Macintosh's alias or URL
  }
}

/// The old codes have text in either width.
std::optional<std::string> TextOf(uint32_t code, std::span<const uint8_t> bytes) {
  const bool old = code == kLocatorOldRelative || code == kLocatorOldAbsolute;
  if (old && !(bytes.size() >= 2 && bytes[1] == 0)) {
    const auto end = std::find(bytes.begin(), bytes.end(), 0);
    std::string text(bytes.begin(), end);
    // Its code page is unknown: what is the same in all of them is taken.
    const bool plain = std::ranges::all_of(text, [](char c) { return c >= 0x20 && c < 0x7f; });
    return plain ? std::optional(text) : std::nullopt;
  }
  return vmm::Utf16ToUtf8(bytes, std::endian::little);
}

/// The name in the header itself: a whole path or the file's name.
std::optional<Path> NameInHeader(const DynamicHeader& header) {
  auto text = vmm::Utf16ToUtf8(header.parent_unicode_name, std::endian::big);
  if (!text || text->empty()) return std::nullopt;
  const bool absolute = text->starts_with('\\') || text->find(':') != std::string::npos;
  return Path{absolute ? Path::Kind::kAbsolute : Path::Kind::kRelative, std::move(*text)};
}

}  // namespace

Result<ParentReference> ReadParentReference(BlockFile& file, const DynamicHeader& header,
                                            uint64_t file_bytes, std::vector<Structure>* parts) {
  ParentReference parent;
  parent.linkage = {header.parent_unique_id};
  parent.modified = kEpoch + header.parent_time_stamp;
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i < kLocators; ++i) {
    const ParentLocator& locator = header.locators[i];
    const uint32_t code = locator.platform_code, length = locator.data_length;
    if (code == 0 || length == 0) continue;
    const uint64_t offset = locator.data_offset;
    if (length > kMaxLocatorBytes || offset < kFooterBytes || offset > file_bytes ||
        length > file_bytes - offset)
      return MakeError(Code::kDataLoss,
                       "parent locator {}: {:#x}+{:#x} is no place in the file, or too long", i + 1,
                       offset, length);
    parts->push_back({offset, length, fmt::format("parent locator {}", i + 1)});
    const auto kind = KindOf(code);
    if (!kind) continue;
    bytes.resize(length);
    TRY_VOID_CTX(file.Read(bytes, offset), "reading parent locator {}", i + 1);
    auto text = TextOf(code, bytes);
    if (!text || text->empty())
      return MakeError(Code::kDataLoss, "parent locator {} at {:#x}: its text is not valid", i + 1,
                       offset);
    parent.paths.push_back({*kind, std::move(*text)});
  }
  std::ranges::stable_sort(parent.paths, {}, &Path::kind);  // relative ones first
  if (auto name = NameInHeader(header); name && std::ranges::none_of(parent.paths, [&](auto& path) {
                                          return path.text == name->text;
                                        }))
    parent.paths.push_back(std::move(*name));
  if (parent.paths.empty())
    return vmm::Error(Code::kDataLoss,
                      "a differencing disk that names no parent (locators and header are empty)");
  return parent;
}

}  // namespace kvmbus::virtdev::vhd

namespace kvmbus::virtdev {
namespace {

using namespace vhd;
using vmm::Code;
using vmm::MakeError;
using vmm::Result;

/// Appends a locator's text, in whole sectors; its place counts from the first text.
Result<void> AddLocator(ParentLocator* locator, uint32_t code, const std::string& path,
                        std::vector<uint8_t>* texts) {
  auto text = vmm::Utf8ToUtf16(path, std::endian::little);
  if (!text || text->empty() || text->size() > 60u << 10)
    return MakeError(Code::kInvalidArgument,
                     "the parent's path '{}' is no text of up to 30720 "
                     "characters",
                     path);
  locator->platform_code = code;
  locator->data_length = static_cast<uint32_t>(text->size());
  text->resize(RoundUp(text->size(), kSector));
  locator->data_space = static_cast<uint32_t>(text->size());
  locator->data_offset = texts->size();
  texts->insert(texts->end(), text->begin(), text->end());
  return {};
}

/// The file's name alone, as much of it as there is room for.
void SetParentName(DynamicHeader* header, const std::string& path) {
  std::ranges::fill(header->parent_unicode_name, uint8_t{0});
  const auto name = vmm::Utf8ToUtf16(path.substr(path.find_last_of("\\/") + 1), std::endian::big);
  if (!name) return;
  std::copy_n(name->begin(), std::min(name->size(), sizeof(header->parent_unicode_name) - 2),
              header->parent_unicode_name);
}

}  // namespace

VhdParent VhdParentOf(const ParentReference& reference, uint64_t size_bytes) {
  VhdParent kept;
  kept.identity = reference.linkage.front();
  kept.size_bytes = size_bytes;
  kept.modified = reference.modified;
  kept.relative_path = reference.paths.front().text;
  if (reference.paths.size() > 1) kept.absolute_path = reference.paths[1].text;
  return kept;
}

Result<std::vector<uint8_t>> SetVhdParent(DynamicHeader* header, const VhdParent& parent) {
  header->parent_unique_id = parent.identity;
  header->parent_time_stamp = TimeStampOf(parent.modified);
  SetParentName(header, parent.relative_path);
  std::ranges::fill(header->locators, ParentLocator{});
  std::vector<uint8_t> texts;
  TRY_VOID(AddLocator(&header->locators[0], kLocatorRelative, parent.relative_path, &texts));
  if (!parent.absolute_path.empty())
    TRY_VOID(AddLocator(&header->locators[1], kLocatorAbsolute, parent.absolute_path, &texts));
  return texts;
}

void PlaceLocators(DynamicHeader* header, uint64_t file_offset) {
  for (ParentLocator& locator : header->locators) {
    if (locator.data_length != 0) locator.data_offset = locator.data_offset + file_offset;
  }
}

}  // namespace kvmbus::virtdev
