// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx/vhdx_locator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "virtdev/disk/chain/parent_path.h"
#include "virtdev/disk/vhdx/vhdx_check_parent.h"
#include "virtdev/disk/vhdx/vhdx_format.h"
#include "vmm/text/utf16.h"

namespace kvmbus::virtdev {
namespace {

using testing::ElementsAre;
using Bytes = std::vector<uint8_t>;
using Kind = ParentReference::Path::Kind;

constexpr vmm::Guid kIdentity = vmm::MakeGuid("57164f39-9115-4e78-ab55-382f3bd5422d");

/// A locator of these keys and values, which are ASCII but for what `raw` replaces the last value
/// by.
Bytes Locator(const std::vector<std::pair<std::string, std::string>>& entries, Bytes raw = {}) {
  Bytes item(20 + 12 * entries.size());
  vhdx::Store(item, 0,
              vhdx::ParentLocatorHeader{vhdx::kVhdxParentLocator, 0,
                                        static_cast<uint16_t>(entries.size())});
  for (size_t i = 0; i < entries.size(); ++i) {
    const Bytes key = vmm::Utf8ToUtf16(entries[i].first, std::endian::little).value();
    const Bytes value = i + 1 == entries.size() && !raw.empty()
                            ? raw
                            : vmm::Utf8ToUtf16(entries[i].second, std::endian::little).value();
    const auto at = static_cast<uint32_t>(item.size());
    vhdx::Store(item, 20 + 12 * i,
                vhdx::ParentLocatorEntry{at, static_cast<uint32_t>(at + key.size()),
                                         static_cast<uint16_t>(key.size()),
                                         static_cast<uint16_t>(value.size())});
    item.insert(item.end(), key.begin(), key.end());
    item.insert(item.end(), value.begin(), value.end());
  }
  return item;
}

std::string Linkage() { return "{" + kIdentity.ToString() + "}"; }

/// Why it is refused; both readings must say that it is.
std::string WhyNot(const Bytes& item) {
  const auto parsed = vhdx::ParseParentLocator(item);
  EXPECT_EQ(parsed.ok(), check::ReadLocator(item).errors.empty());
  return parsed.ok() ? "" : parsed.error().ToString();
}

TEST(Utf16Test, GoesThereAndBack) {
  const std::string text = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80";  // 1, 2, 3 and 4 bytes
  const auto wide = vmm::Utf8ToUtf16(text, std::endian::little);
  ASSERT_TRUE(wide);
  EXPECT_THAT(*wide, ElementsAre('a', 0, 0xe9, 0, 0xac, 0x20, 0x3d, 0xd8, 0x00, 0xde));
  EXPECT_EQ(vmm::Utf16ToUtf8(*wide, std::endian::little), text);
}

TEST(Utf16Test, RefusesWhatIsNone) {
  for (const Bytes& bad : {Bytes{1}, Bytes{0, 0xd8}, Bytes{0, 0xdc}, Bytes{0, 0xd8, 65, 0},
                           Bytes{0, 0xdc, 0, 0xd8}, Bytes{0, 0xd8, 0, 0xd8, 0, 0xdc}})
    EXPECT_EQ(vmm::Utf16ToUtf8(bad, std::endian::little), std::nullopt);
  for (const char* bad : {"\x80", "\xc0\x80", "\xc3", "\xe0\x80\x80", "\xed\xa0\x80",
                          "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xc3("})
    EXPECT_EQ(vmm::Utf8ToUtf16(bad, std::endian::little), std::nullopt) << bad;
}

TEST(VhdxLocatorTest, PathsComeInTheOrderInWhichTheyAreTried) {
  const auto parent = vhdx::ParseParentLocator(
      Locator({{"absolute_win32_path", "C:\\b.vhdx"},
               {"parent_linkage2", "{00000000-0000-0000-0000-000000000000}"},
               {"relative_path", ".\\b.vhdx"},
               {"future", "?"},
               {"volume_path", "\\\\?\\Volume{x}\\b.vhdx"},
               {"parent_linkage", kIdentity.ToString()}}));
  ASSERT_TRUE(parent.ok()) << parent.error().ToString();
  EXPECT_THAT(parent->linkage, ElementsAre(kIdentity));
  ASSERT_EQ(parent->paths.size(), 3u);
  EXPECT_EQ(parent->paths[0].kind, Kind::kRelative);
  EXPECT_EQ(parent->paths[1].kind, Kind::kVolume);
  EXPECT_EQ(parent->paths[2].text, "C:\\b.vhdx");
}

TEST(VhdxLocatorTest, WhatIsBuiltIsParsed) {
  ParentReference parent;
  parent.linkage = {kIdentity, vmm::Guid::Random()};
  parent.paths = {{Kind::kRelative, "..\\\xf0\x9f\x98\x80\\b.vhdx"}, {Kind::kAbsolute, "\\b.vhdx"}};
  const auto item = vhdx::BuildParentLocator(parent);
  ASSERT_TRUE(item.ok());
  EXPECT_EQ(WhyNot(*item), "");
  const auto back = vhdx::ParseParentLocator(*item).value();
  EXPECT_EQ(back.linkage, parent.linkage);
  ASSERT_EQ(back.paths.size(), 2u);
  EXPECT_EQ(back.paths[0].text, parent.paths[0].text);
  EXPECT_EQ(back.paths[1].text, parent.paths[1].text);
  parent.paths[0].text = "\xff";
  EXPECT_FALSE(vhdx::BuildParentLocator(parent).ok());
  parent.paths[0].text = std::string(40000, 'x');
  EXPECT_FALSE(vhdx::BuildParentLocator(parent).ok());
}

TEST(VhdxLocatorTest, HostileOnesAreRefused) {
  const std::pair<std::string, std::string> link = {"parent_linkage", Linkage()},
                                            path = {"relative_path", "b.vhdx"};
  const Bytes good = Locator({link, path});
  ASSERT_EQ(WhyNot(good), "");
  EXPECT_NE(WhyNot(Locator({link})), "");
  EXPECT_NE(WhyNot(Locator({path})), "");
  EXPECT_NE(WhyNot(Locator({link, path, path})), "");
  EXPECT_NE(WhyNot(Locator({path, {"parent_linkage", "57164f39"}})), "");
  EXPECT_NE(WhyNot(Locator({path, {"parent_linkage", vmm::Guid{}.ToString()}})), "");
  EXPECT_NE(WhyNot(Locator({path, link, {"parent_linkage2", "x"}})), "");
  EXPECT_NE(WhyNot(Locator({link, path}, {0, 0xd8, 65, 0})), "") << "half a surrogate pair";
  EXPECT_NE(WhyNot(Locator({link, path}, {65, 0, 0, 0})), "") << "a NUL";
  EXPECT_NE(WhyNot(Locator({link, path}, {65, 0, 10, 0})), "") << "a line feed";
  EXPECT_NE(WhyNot(Locator({link, path}, {65, 0, 66})), "") << "an odd length";
  EXPECT_NE(WhyNot(Locator({})), "");
  EXPECT_NE(WhyNot({}), "");
  for (size_t length = 0; length < good.size(); ++length)
    EXPECT_NE(WhyNot(Bytes(good.begin(), good.begin() + static_cast<ptrdiff_t>(length))), "");
  // Every field of the first entry out of bounds, and the type.
  for (const size_t at : {0, 18, 20, 24, 28, 30}) {
    Bytes bad = good;
    bad[at] ^= 0xff;
    bad[at + 1] ^= 0xff;
    EXPECT_NE(WhyNot(bad), "") << at;
  }
  Bytes inside = good;
  vhdx::Store(inside, 20, uint32_t{0});
  EXPECT_NE(WhyNot(inside), "") << "a key within the header";
}

std::vector<std::string> Candidates(Kind kind, const std::string& text) {
  return ParentCandidates("/vm/disks", {{{kind, text}}, {kIdentity}});
}

TEST(ParentPathTest, WindowsPathsBecomeOurs) {
  EXPECT_THAT(Candidates(Kind::kRelative, ".\\b.vhdx"), ElementsAre("/vm/disks/b.vhdx"));
  EXPECT_THAT(Candidates(Kind::kRelative, "..\\base\\b.vhdx"),
              ElementsAre("/vm/base/b.vhdx", "/vm/disks/b.vhdx"));
  EXPECT_THAT(Candidates(Kind::kAbsolute, "\\srv\\b.vhdx"),
              ElementsAre("/srv/b.vhdx", "/vm/disks/b.vhdx"));
  // A place that only Windows knows counts for its base name.
  for (const char* text : {"C:\\VMs\\b.vhdx", "\\\\?\\C:\\VMs\\b.vhdx", "\\\\server\\VMs\\b.vhdx"})
    EXPECT_THAT(Candidates(Kind::kAbsolute, text), ElementsAre("/vm/disks/b.vhdx"));
  EXPECT_THAT(Candidates(Kind::kVolume, "\\\\?\\Volume{x}\\VMs\\b.vhdx"),
              ElementsAre("/vm/disks/b.vhdx"));
  // A path that is not of its key's kind, too.
  EXPECT_THAT(Candidates(Kind::kRelative, "\\etc\\b.vhdx"), ElementsAre("/vm/disks/b.vhdx"));
  EXPECT_THAT(Candidates(Kind::kAbsolute, "etc\\b.vhdx"), ElementsAre("/vm/disks/b.vhdx"));
  for (const char* text : {"..", ".\\", "..\\", "\\"})
    EXPECT_THAT(Candidates(Kind::kRelative, text), ElementsAre()) << text;
}

}  // namespace
}  // namespace kvmbus::virtdev
