// SPDX-License-Identifier: Apache-2.0
// Damaged and hostile VHD files: each is refused with an error that says what and where, and the
// strict check, which shares no code with the driver, finds it too.
#include <gtest/gtest.h>

#include <functional>

#include "virtdev/disk/vhd/vhd_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhd_test;
using vhd::DynamicHeader;
using vhd::Footer;

struct Case {
  const char* name;
  Kind kind;
  std::function<void(CrashMedium&)> edit;
  const char* error;    ///< a part of the driver's
  const char* finding;  ///< a part of the check's
};

/// Where the first two blocks of a new image come: in sectors.
constexpr uint32_t kFirst = 3584 / 512 + 0;
constexpr uint32_t kSecond = kFirst + 1 + kBlock / 512 + 7;

/// With blocks 0 and 1.
CrashMedium TwoBlocks(Kind kind) {
  CrashMedium medium = NewMedium(kind);
  if (kind == Kind::kFixed) return medium;
  auto image = Open(medium);
  Write(*image, 0, Bytes(kUnit, 1));
  Write(*image, kBlock, Bytes(kUnit, 1));
  EXPECT_TRUE(image->Close().ok());
  return medium;
}

Case FooterCase(const char* name, std::function<void(Footer&)> change, const char* error,
                const char* finding) {
  return {name, Kind::kDynamic, [change](CrashMedium& medium) { EditFooters(medium, change); },
          error, finding};
}
Case HeaderCase(const char* name, std::function<void(DynamicHeader&)> change, const char* error,
                const char* finding) {
  return {name, Kind::kDynamic, [change](CrashMedium& medium) { EditHeader(medium, change); },
          error, finding};
}
Case BatCase(const char* name, uint64_t index, uint32_t sector, const char* error,
             const char* finding) {
  return {name, Kind::kDynamic, [=](CrashMedium& medium) { PokeBat(medium, index, sector); }, error,
          finding};
}
Case ParentCase(const char* name, std::function<void(DynamicHeader&)> change, const char* error,
                const char* finding) {
  return {name, Kind::kDifferencing, [change](CrashMedium& medium) { EditHeader(medium, change); },
          error, finding};
}

std::vector<Case> FileCases() {
  const auto fixed = [](std::function<void(Footer&)> change) {
    return [change](CrashMedium& medium) { Edit<Footer>(medium, EndFooterAt(medium), change); };
  };
  return {
      {"a short file", Kind::kDynamic, [](CrashMedium& medium) { medium.now.Resize(1000); },
       "a file of 1000 bytes", "1000 bytes"},
      {"no footer", Kind::kDynamic,
       [](CrashMedium& medium) {
         medium.now.Write(Bytes(8, 0), 0);
         medium.now.Write(Bytes(8, 0), EndFooterAt(medium));
       },
       "neither the footer at the end", "neither is valid"},
      {"both checksums wrong", Kind::kDynamic,
       [](CrashMedium& medium) {
         medium.now.Write(Bytes(1, 0x77), 100);
         medium.now.Write(Bytes(1, 0x77), EndFooterAt(medium) + 100);
       },
       "checksum 0x", "neither is valid"},
      {"a fixed disk's footer at 0 alone", Kind::kFixed,
       [](CrashMedium& medium) {
         medium.now.Write(medium.now.Read(EndFooterAt(medium), 512), 0);
         medium.now.Write(Bytes(512, 0), EndFooterAt(medium));
       },
       "it is no dynamic disk's", "neither is valid"},
      {"a fixed disk cut short", Kind::kFixed,
       fixed([](Footer& footer) { footer.current_size = kDiskBytes + 512; }), "it was cut off",
       "of a disk of"},
      {"a file cut in its last block", Kind::kDynamic,
       [](CrashMedium& medium) { medium.now.Resize(medium.now.size() - 4096); },
       "BAT entry 1: block at 0x81e00", "BAT entry 1: its block"},
  };
}

std::vector<Case> FooterCases() {
  return {
      FooterCase(
          "version", [](Footer& f) { f.version = 0x20000; }, "footer: version 0x20000",
          "footer: version"),
      FooterCase(
          "size 0", [](Footer& f) { f.current_size = 0; }, "a disk of 0 bytes", "disk size 0"),
      FooterCase(
          "size no multiple", [](Footer& f) { f.current_size = 1000; }, "a disk of 1000 bytes",
          "disk size 1000"),
      FooterCase(
          "size over the limit", [](Footer& f) { f.current_size = (uint64_t{2041} << 30); },
          "up to 2040 GiB", "disk size"),
      FooterCase(
          "header outside", [](Footer& f) { f.data_offset = uint64_t{1} << 63; },
          "dynamic header: 0x8000000000000000", "no place in the file"),
      FooterCase(
          "header unaligned", [](Footer& f) { f.data_offset = 700; }, "dynamic header: 0x2bc",
          "0x2bc is no place"),
      FooterCase(
          "header in the copy", [](Footer& f) { f.data_offset = 0; }, "dynamic header: 0x0",
          "0x0 is no place"),
      FooterCase(
          "header elsewhere", [](Footer& f) { f.data_offset = 1536; },
          "dynamic header at 0x600: no signature", "no signature at 0x600"),
  };
}

std::vector<Case> HeaderCases() {
  return {
      {"header checksum", Kind::kDynamic,
       [](CrashMedium& medium) { medium.now.Write(Bytes(1, 0x77), 1000); },
       "dynamic header at 0x200: checksum", "dynamic header: checksum"},
      HeaderCase(
          "version", [](DynamicHeader& h) { h.version = 0; }, "dynamic header: version 0x0",
          "dynamic header: version"),
      HeaderCase(
          "block size no power", [](DynamicHeader& h) { h.block_size = 3 << 20; },
          "block size 3145728", "block size 3145728"),
      HeaderCase(
          "block size 0", [](DynamicHeader& h) { h.block_size = 0; }, "block size 0",
          "block size 0"),
      HeaderCase(
          "block size small", [](DynamicHeader& h) { h.block_size = 512; }, "block size 512",
          "block size 512"),
      HeaderCase(
          "block size big", [](DynamicHeader& h) { h.block_size = 1u << 31; },
          "block size 2147483648", "block size 2147483648"),
      HeaderCase(
          "few entries", [](DynamicHeader& h) { h.max_table_entries = 7; },
          "7 BAT entries for a disk of 8 blocks", "7 entries for 8 blocks"),
      HeaderCase(
          "many entries", [](DynamicHeader& h) { h.max_table_entries = 0xffffffff; },
          "4294967295 BAT entries", "no place in the file"),
      HeaderCase(
          "a table past the end", [](DynamicHeader& h) { h.max_table_entries = 1u << 20; },
          "BAT: 0x600+0x400000 is no place", "no place in the file"),
      HeaderCase(
          "table outside", [](DynamicHeader& h) { h.table_offset = ~uint64_t{0} << 9; },
          "BAT: 0xfffffffffffffe00", "no place in the file"),
      HeaderCase(
          "table unaligned", [](DynamicHeader& h) { h.table_offset = 1540; }, "BAT: 0x604",
          "0x604"),
      HeaderCase(
          "table over the header", [](DynamicHeader& h) { h.table_offset = 1024; },
          "the BAT at 0x400 overlaps the dynamic header at 0x200", "it overlaps"),
  };
}

std::vector<Case> BatCases() {
  return {
      BatCase("over the copy", 2, 0, "BAT entry 2: its block lies in the footer's copy",
              "BAT entry 2"),
      BatCase("over the header", 2, 1, "overlaps the dynamic header at 0x200", "overlaps"),
      BatCase("over the BAT", 7, 3, "BAT entry 7: block at 0x600 overlaps the BAT", "overlaps"),
      BatCase("past the end", 5, 0xfffffffe, "BAT entry 5: block at 0x1fffffffc00",
              "BAT entry 5: its block"),
      BatCase("over the footer", 5, kSecond + 1, "BAT entry 5: block at", "BAT entry 5: its block"),
      BatCase("twice the same", 6, kFirst, "BAT entry 6: block at 0xe00 overlaps that of entry 0",
              "overlaps"),
      BatCase("half over another", 6, kFirst + 3, "BAT entry 6: block at 0x1400 overlaps that of",
              "overlaps"),
  };
}

std::vector<Case> ParentCases() {
  return {
      ParentCase(
          "locator outside",
          [](DynamicHeader& h) { h.locators[1].data_offset = uint64_t{1} << 40; },
          "parent locator 2: 0x10000000000", "parent locator 2"),
      ParentCase(
          "locator too long", [](DynamicHeader& h) { h.locators[0].data_length = 1 << 30; },
          "parent locator 1", "parent locator 1"),
      ParentCase(
          "locator over the BAT", [](DynamicHeader& h) { h.locators[0].data_offset = 512; },
          "overlaps", "overlaps"),
      {"locator no text", Kind::kDifferencing,
       [](CrashMedium& medium) {
         const auto header = Peek<DynamicHeader>(medium, vhd::kHeaderOffset);
         medium.now.Write(Bytes{0x00, 0xd8}, header.locators[0].data_offset);
       },
       "parent locator 1 at 0x800: its text is not valid", ""},
      ParentCase(
          "no parent named",
          [](DynamicHeader& h) {
            for (auto& locator : h.locators) locator = {};
            std::fill(std::begin(h.parent_unicode_name), std::end(h.parent_unicode_name), 0);
          },
          "names no parent", "names no parent"),
  };
}

TEST(VhdHostileTest, EachIsRefusedWithWhatAndWhere) {
  for (const auto& cases : {FileCases(), FooterCases(), HeaderCases(), BatCases(), ParentCases()}) {
    for (const Case& one : cases) {
      SCOPED_TRACE(one.name);
      CrashMedium medium = TwoBlocks(one.kind);
      ASSERT_EQ(WhyNot(medium), "");
      ASSERT_EQ(Complaints(medium, true), "");
      one.edit(medium);
      const SparseBytes before = medium.now;
      EXPECT_NE(WhyNot(medium).find(one.error), std::string::npos) << WhyNot(medium);
      EXPECT_NE(WhyNot(medium, false), "");
      EXPECT_TRUE(medium.now == before) << "a refused image stays as it is";
      EXPECT_NE(Complaints(medium).find(one.finding), std::string::npos) << Complaints(medium);
    }
  }
}

// A guest's own data at the end of a file that a crash has cut there, made up as a footer: it may
// not lead to a header and to locators of its making.
TEST(VhdHostileTest, AFooterOfAGuestsMakingDoesNotCount) {
  CrashMedium medium = TwoBlocks(Kind::kDynamic);
  medium.now.Resize(EndFooterAt(medium));
  Footer forged = Peek<Footer>(medium, 0);
  forged.disk_type = static_cast<uint32_t>(vhd::DiskType::kDifferencing);
  forged.data_offset = (kSecond + 1) * uint64_t{512};
  forged.checksum = vhd::ChecksumOf(forged);
  Poke(medium, EndFooterAt(medium), forged);
  EXPECT_EQ(Complaints(medium), "");
  EXPECT_NE(Complaints(medium, true).find("the copy at 0 replaces it"), std::string::npos);
  auto image = Open(medium);
  ASSERT_NE(image, nullptr);
  EXPECT_EQ(image->parent(), nullptr);
  EXPECT_EQ(Complaints(medium, true), "");
  EXPECT_EQ(Read(*image, kBlock, kUnit), Bytes(kUnit, 1));
}

// A fixed disk that begins with a footer is a fixed disk.
TEST(VhdHostileTest, AFixedDisksContentIsNotLookedAt) {
  CrashMedium medium = NewMedium(Kind::kFixed);
  CrashMedium other = TwoBlocks(Kind::kDifferencing);
  auto image = Open(medium);
  Write(*image, 0, other.now.Read(0, 64 << 10));
  ASSERT_TRUE(image->Close().ok());
  image = Open(medium);
  ASSERT_NE(image, nullptr);
  EXPECT_EQ(image->parent(), nullptr);
  EXPECT_EQ(Read(*image, 0, 64 << 10), other.now.Read(0, 64 << 10));
}

}  // namespace
}  // namespace kvmbus::virtdev
