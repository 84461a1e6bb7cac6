// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "virtdev/disk/vhd/vhd_bitmap.h"
#include "virtdev/disk/vhd/vhd_test_image.h"
#include "vmm/text/utf16.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhd_test;
using vhd::DynamicHeader;
using vhd::Footer;
using vhd::Geometry;
using Path = ParentReference::Path;

TEST(Utf16Test, GoesBothWaysAndRefusesTheRest) {
  const std::string text = "a\xc3\xa4\xe2\x82\xac\xf0\x9f\x92\xbe";  // one to four bytes each
  for (const std::endian order : {std::endian::little, std::endian::big})
    EXPECT_EQ(vmm::Utf16ToUtf8(vmm::Utf8ToUtf16(text, order).value(), order), text);
  EXPECT_EQ(vmm::Utf8ToUtf16("A", std::endian::big), (Bytes{0, 'A'}));
  EXPECT_EQ(vmm::Utf8ToUtf16("A", std::endian::little), (Bytes{'A', 0}));
  EXPECT_EQ(vmm::Utf16ToUtf8(Bytes{'a', 0, 0, 0, 'b', 0}, std::endian::little), "a");
  for (const char* bad : {"\x80", "\xc0\x80", "\xe2\x82", "\xed\xa0\x80", "\xf4\x90\x80\x80"})
    EXPECT_EQ(vmm::Utf8ToUtf16(bad, std::endian::little), std::nullopt);
  for (const Bytes& bad : {Bytes{1}, Bytes{0, 0xd8}, Bytes{0, 0xdc}, Bytes{0, 0xd8, 'a', 0}})
    EXPECT_EQ(vmm::Utf16ToUtf8(bad, std::endian::little), std::nullopt);
}

TEST(VhdFormatTest, GeometryIsTheSpecifications) {
  EXPECT_EQ(vhd::GeometryOf(64ull << 20), (Geometry{963, 8, 17}));
  EXPECT_EQ(vhd::GeometryOf(20ull << 30), (Geometry{41610, 16, 63}));
  EXPECT_EQ(vhd::GeometryOf(2040ull << 30), (Geometry{65535, 16, 255}));
  EXPECT_EQ(vhd::GeometryOf(512), (Geometry{0, 4, 17}));
  for (uint64_t size = 1 << 20; size < 2040ull << 30; size += size / 3)
    EXPECT_LE(vhd::GeometryOf(size).bytes(), size);
}

TEST(VhdFormatTest, StructuresAreBigEndianAndSummed) {
  vhd::Be32 value = 0x01020304u;
  EXPECT_EQ(std::memcmp(&value, "\1\2\3\4", 4), 0);
  Footer footer{};
  footer.cookie = vhd::kFooterCookie;
  EXPECT_EQ(std::memcmp(&footer, "conectix", 8), 0);
  uint32_t sum = 0;
  for (const char c : std::string("conectix")) sum += static_cast<uint8_t>(c);
  EXPECT_EQ(vhd::ChecksumOf(footer), ~sum);
  footer.checksum = 0xffffffff;
  EXPECT_EQ(vhd::ChecksumOf(footer), ~sum) << "its own field does not count";
}

TEST(SectorBitmapTest, RunsGoFromTheMostSignificantBit) {
  vhd::SectorBitmap bitmap(Bytes{0x0f, 0xff, 0x80, 0x00});
  EXPECT_EQ(bitmap.Run(0, 32, false), 4u);
  EXPECT_EQ(bitmap.Run(4, 28, true), 13u);
  EXPECT_EQ(bitmap.Run(17, 15, false), 15u);
  EXPECT_EQ(bitmap.Run(4, 5, true), 5u);
  bitmap.Set(2, 21);
  EXPECT_EQ(bitmap.Copy(), (Bytes{0x3f, 0xff, 0xfe, 0x00}));
  EXPECT_TRUE(bitmap.AllSet(2, 21));
  EXPECT_FALSE(bitmap.AllSet(1, 2));
}

TEST(VhdImageTest, ANewImageIsSoundAndReadsZero) {
  for (const Kind kind : {Kind::kFixed, Kind::kDynamic}) {
    for (const uint64_t size : {kDiskBytes, kDiskBytes - 512, uint64_t{512}, uint64_t{9} << 20}) {
      CrashMedium medium = NewMedium(kind, size);
      EXPECT_EQ(Complaints(medium, size > 512), "") << "a disk of a sector has no geometry";
      auto image = Open(medium);
      EXPECT_EQ(image->info().size_bytes, size);
      EXPECT_EQ(image->info().logical_sector_bytes, 512u);
      EXPECT_EQ(image->parent(), nullptr);
      EXPECT_FALSE(image->identity().IsZero());
      EXPECT_EQ(Read(*image, 0, size), Bytes(size, 0));
      Write(*image, size - 512, Bytes(512, 7));
      EXPECT_TRUE(image->Close().ok());
      EXPECT_EQ(Read(*Open(medium, true), size - 512, 512), Bytes(512, 7));
    }
  }
}

TEST(VhdImageTest, OpeningWithoutWritingChangesNothing) {
  for (const Kind kind : {Kind::kFixed, Kind::kDynamic, Kind::kDifferencing}) {
    for (const bool read_only : {false, true}) {
      CrashMedium medium = NewMedium(kind);
      const SparseBytes before = medium.now;
      auto image = Open(medium, read_only);
      EXPECT_TRUE(image->Flush().ok());
      EXPECT_TRUE(image->Close().ok());
      EXPECT_TRUE(medium.now == before);
    }
  }
}

TEST(VhdImageTest, BlocksAreAlignedAndTheFooterFollows) {
  CrashMedium medium = NewMedium();
  auto image = Open(medium);
  for (uint64_t block = 0; block < 3; ++block) {
    const uint64_t data = image->MapForWrite(block * kBlock, 512)->at(0).file_offset;
    EXPECT_EQ(data % 4096, 0u);
    EXPECT_EQ(medium.now.size(), data + kBlock + vhd::kFooterBytes);
  }
  ASSERT_TRUE(image->Close().ok());
  EXPECT_EQ(medium.now.Read(0, 512), medium.now.Read(EndFooterAt(medium), 512));
  const Bytes bitmap = medium.now.Read(uint64_t{PeekBat(medium, 0)} * 512, kBlock / 512 / 8);
  EXPECT_EQ(bitmap, Bytes(bitmap.size(), 0xff)) << "other programs take blocks for whole";
}

TEST(VhdImageTest, ABatEntryWaitsForWhatItLeadsTo) {
  CrashMedium medium = NewMedium();
  auto image = Open(medium);
  const uint64_t before = medium.flushes;
  for (uint64_t block = 0; block < 6; ++block) Write(*image, block * kBlock, Bytes(kUnit, 1));
  EXPECT_EQ(PeekBat(medium, 0), vhd::kUnallocated);
  ASSERT_TRUE(image->Flush().ok());
  EXPECT_EQ(medium.flushes - before, 2u) << "for all of them together";
  EXPECT_NE(PeekBat(medium, 0), vhd::kUnallocated);
  Write(*image, 0, Bytes(kUnit, 2));
  ASSERT_TRUE(image->Flush().ok());
  EXPECT_EQ(medium.flushes - before, 3u) << "nothing but data";
}

TEST(VhdImageTest, ADifferencingLayerHasWhatWasWritten) {
  CrashMedium medium = NewMedium(Kind::kDifferencing);
  Bytes disk(kDiskBytes, 0x42);
  const Bytes parent = disk;
  auto image = Open(medium);
  EXPECT_FALSE(image->info().unmapped_reads_zero);
  ASSERT_TRUE(image->MapForWrite(512, 1024).ok());
  EXPECT_FALSE(IsHere(*image, 512)) << "the data is not there yet";
  Write(*image, 512, Bytes(1024, 1));
  EXPECT_FALSE(IsHere(*image, 0));
  EXPECT_TRUE(IsHere(*image, 512));
  EXPECT_TRUE(IsHere(*image, 1024));
  EXPECT_FALSE(IsHere(*image, 1536));
  // Zeroes hide the parent's data; releasing never brings older data back.
  ASSERT_TRUE(image->WriteZeroes(kBlock, 4096).ok());
  ASSERT_TRUE(image->Unmap(0, 2 * kBlock).ok());
  std::fill_n(disk.begin() + 512, 1024, 0);
  std::fill_n(disk.begin() + kBlock, 4096, 0);
  EXPECT_EQ(Read(*image, 0, kDiskBytes, &parent), disk);
  ASSERT_TRUE(image->Close().ok());
  EXPECT_EQ(Read(*Open(medium, true), 0, kDiskBytes, &parent), disk);
}

TEST(VhdImageTest, TheParentIsNamedInTheOrderOfTrying) {
  CrashMedium medium = NewMedium(Kind::kDifferencing);
  const auto image = Open(medium, true);
  ASSERT_NE(image->parent(), nullptr);
  const ParentReference& parent = *image->parent();
  EXPECT_EQ(parent.linkage, std::vector<vmm::Guid>{SomeParent().identity});
  ASSERT_EQ(parent.paths.size(), 3u);
  EXPECT_EQ(parent.paths[0].kind, Path::Kind::kRelative);
  EXPECT_EQ(parent.paths[0].text, ".\\base.vhd");
  EXPECT_EQ(parent.paths[1].kind, Path::Kind::kAbsolute);
  EXPECT_EQ(parent.paths[1].text, "C:\\vm\\base.vhd");
  EXPECT_EQ(parent.paths[2].text, "base.vhd");
  const auto header = Peek<DynamicHeader>(medium, vhd::kHeaderOffset);
  EXPECT_EQ(header.parent_time_stamp, 1600000000u - 946684800u);
}

TEST(VhdImageTest, OldLocatorsAreRead) {
  CrashMedium medium = NewMedium(Kind::kDifferencing);
  EditHeader(medium, [&](DynamicHeader& header) {
    header.locators[0].platform_code = vhd::kLocatorOldAbsolute;  // two bytes a character
    header.locators[1].platform_code = vhd::kLocatorOldRelative;  // one
    header.locators[1].data_length = 8;
    const std::string text = "old.vhd";
    medium.now.Write(Bytes(text.c_str(), text.c_str() + 8), header.locators[1].data_offset);
    header.locators[2].platform_code = 0x4d616358;  // "MacX", of no use here
    header.locators[2].data_length = 0;
  });
  const auto image = Open(medium, true);
  ASSERT_NE(image, nullptr);
  EXPECT_EQ(image->parent()->paths[0].text, "old.vhd");
  EXPECT_EQ(image->parent()->paths[1].text, ".\\base.vhd");
  EXPECT_EQ(image->parent()->paths[1].kind, Path::Kind::kAbsolute);
}

TEST(VhdImageTest, FootersAreMendedFromEachOther) {
  for (const Kind kind : {Kind::kDynamic, Kind::kDifferencing}) {
    for (const bool end : {false, true}) {
      CrashMedium medium = NewMedium(kind);
      const SparseBytes sound = medium.now;
      medium.now.Write(Bytes(4, 0x11), end ? EndFooterAt(medium) + 60 : 60);
      const SparseBytes damaged = medium.now;
      EXPECT_NE(Complaints(medium, true), "");
      EXPECT_NE(Open(medium, true), nullptr);
      EXPECT_TRUE(medium.now == damaged) << "read-only";
      EXPECT_NE(Open(medium), nullptr);
      EXPECT_TRUE(medium.now == sound);
      EXPECT_TRUE(medium.durable == sound) << "at once";
    }
  }
}

// Growing a disk changes one footer after the other: the end's is newer.
TEST(VhdImageTest, TheFooterAtTheEndIsTrusted) {
  CrashMedium medium = NewMedium();
  Edit<Footer>(medium, EndFooterAt(medium),
               [](Footer& footer) { footer.current_size = kDiskBytes - kBlock; });
  EXPECT_EQ(Complaints(medium), "") << "a resize may be cut there";
  EXPECT_NE(Complaints(medium, true).find("another size"), std::string::npos);
  auto image = Open(medium);
  EXPECT_EQ(image->info().size_bytes, kDiskBytes - kBlock);
  EXPECT_EQ(Complaints(medium, true).find("another size"), std::string::npos) << "mended";
  Edit<Footer>(medium, EndFooterAt(medium), [](Footer& footer) { footer.original_size = kBlock; });
  EXPECT_NE(Complaints(medium).find("differs"), std::string::npos);
}

TEST(VhdImageTest, FootersOf511BytesAreRead) {
  for (const Kind kind : {Kind::kFixed, Kind::kDynamic}) {
    CrashMedium medium = NewMedium(kind);
    medium.now.Resize(medium.now.size() - 1);
    EXPECT_NE(Complaints(medium, true).find("511 bytes"), std::string::npos);
    EXPECT_EQ(Complaints(medium), "");
    auto image = Open(medium);
    ASSERT_NE(image, nullptr);
    Write(*image, kBlock, Bytes(kUnit, 3));
    ASSERT_TRUE(image->Close().ok());
    EXPECT_EQ(Complaints(medium), "");
    EXPECT_EQ(Read(*Open(medium), kBlock, kUnit), Bytes(kUnit, 3));
  }
}

TEST(VhdImageTest, ADynamicDisksUnwrittenSectorsReadZero) {
  CrashMedium medium = NewMedium();
  auto image = Open(medium);
  Write(*image, 0, Bytes(kBlock, 5));
  ASSERT_TRUE(image->Close().ok());
  const uint64_t bitmap = uint64_t{PeekBat(medium, 0)} * 512;
  medium.now.Write(Bytes{0xf0, 0x00, 0x01}, bitmap);  // as Virtual PC leaves them
  EXPECT_NE(Complaints(medium, true).find("1 blocks have sectors"), std::string::npos);
  Bytes expected(kBlock, 5);
  std::fill(expected.begin() + 4 * 512, expected.begin() + 23 * 512, 0);
  image = Open(medium);
  EXPECT_EQ(Read(*image, 0, kBlock), expected);
  Write(*image, 6 * 512, Bytes(1024, 9));
  std::fill_n(expected.begin() + 6 * 512, 1024, 9);
  ASSERT_TRUE(image->Close().ok());
  EXPECT_EQ(medium.now.Read(bitmap, 3), (Bytes{0xf3, 0x00, 0x01}));
  EXPECT_EQ(Read(*Open(medium), 0, kBlock), expected);
}

// Space that belongs to nothing may hold anything: what a block gets of it is cleared.
TEST(VhdImageTest, LeftoversDoNotComeBack) {
  CrashMedium medium = NewMedium();
  const Bytes footer = medium.now.Read(0, 512);
  medium.now.Write(Bytes(kBlock * 3, 0x99), 2048);
  medium.now.Write(footer, medium.now.size());
  EXPECT_NE(Complaints(medium, true).find("belong to nothing"), std::string::npos);
  auto image = Open(medium);
  Write(*image, 0, Bytes(512, 1));
  Bytes expected(kBlock, 0);
  std::fill_n(expected.begin(), 512, 1);
  EXPECT_EQ(Read(*image, 0, kBlock), expected);
  ASSERT_TRUE(image->Close().ok());
  EXPECT_EQ(Complaints(medium), "");
  EXPECT_EQ(Read(*Open(medium), 0, kBlock), expected);
}

TEST(VhdImageTest, ABitmapThatCannotBeReadFailsTheRead) {
  CrashMedium medium = NewMedium(Kind::kDifferencing);
  auto image = Open(medium);
  Write(*image, 0, Bytes(512, 1));
  ASSERT_TRUE(image->Close().ok());
  image = Open(medium, true);
  medium.now.Resize(2048);
  std::vector<ImageExtent> extents;
  image->MapLayer(0, 1024, &extents);
  ASSERT_EQ(extents.size(), 1u);
  Bytes bytes(1024);
  EXPECT_FALSE(extents[0].file->Read(bytes, extents[0].file_offset).ok());
}

TEST(VhdImageTest, AFailedFlushIsNeverForgotten) {
  for (const Kind kind : {Kind::kFixed, Kind::kDynamic}) {
    CrashMedium medium = NewMedium(kind);
    auto image = Open(medium);
    Write(*image, 0, Bytes(kUnit, 1));
    medium.fail_flushes = true;
    EXPECT_FALSE(image->Flush().ok());
    medium.fail_flushes = false;
    EXPECT_FALSE(image->Flush().ok()) << "the host may have dropped the data";
    EXPECT_FALSE(image->Close().ok());
  }
}

TEST(VhdImageTest, AFailedWriteOfMetadataIsTriedAgain) {
  for (const Kind kind : {Kind::kDynamic, Kind::kDifferencing}) {
    const Bytes below(kDiskBytes, 0);
    CrashMedium medium = NewMedium(kind);
    auto image = Open(medium);
    medium.fail_writes = true;
    EXPECT_FALSE(image->MapForWrite(0, kUnit).ok());
    medium.fail_writes = false;
    Write(*image, 0, Bytes(kUnit, 1));
    medium.fail_writes = true;
    EXPECT_FALSE(image->Flush().ok());
    medium.fail_writes = false;
    EXPECT_TRUE(image->Close().ok());
    EXPECT_EQ(Complaints(medium, true), "");
    EXPECT_EQ(Read(*Open(medium), 0, kUnit, kind == Kind::kDynamic ? nullptr : &below),
              Bytes(kUnit, 1));
  }
}

TEST(VhdImageTest, OptionsOutsideTheFormatAreRefused) {
  const auto why = [](auto change) {
    CreateDiskOptions options;
    options.size_bytes = 1 << 20;
    change(options);
    CrashMedium medium;
    CrashFile file(medium);
    return FormatVhd(file, options, {}).error().ToString();
  };
  EXPECT_NE(why([](auto& o) { o.size_bytes = (2040ull << 30) + 512; }).find("ends at 2040"),
            std::string::npos);
  EXPECT_NE(why([](auto& o) { o.size_bytes = 1000; }).find("a multiple of 512"), std::string::npos);
  EXPECT_NE(why([](auto& o) { o.logical_sector = 4096; }).find("512 alone"), std::string::npos);
  EXPECT_NE(why([](auto& o) { o.block_bytes = 1 << 20; }).find("512 KiB or 2 MiB"),
            std::string::npos);
}

/// One random life against a plain array.
class Model {
 public:
  Model(Kind kind, uint64_t seed) : kind_(kind), random_(seed) {
    disk_ = kDiskBytes - (seed % 5) * 512;  // the last block may be a part of one
    medium_ = NewMedium(kind, disk_, seed % 3 == 0 ? 2u << 20 : kBlock);
    model_.assign(disk_, 0);
    if (kind == Kind::kDifferencing)
      for (uint64_t i = 0; i < disk_; ++i) model_[i] = static_cast<uint8_t>(i / 512 * 7 | 1);
    parent_ = model_;
  }

  void Run() {
    auto image = Open(medium_);
    for (int step = 0; step < 60 && !testing::Test::HasFailure(); ++step) Step(&image);
    ASSERT_TRUE(image->Close().ok());
    ASSERT_EQ(Complaints(medium_, true), "");
    image = Open(medium_, true);
    ASSERT_EQ(ReadAll(*image, 0, disk_), model_);
  }

 private:
  Bytes ReadAll(Image& image, uint64_t offset, uint64_t length) {
    return Read(image, offset, length, kind_ == Kind::kDifferencing ? &parent_ : nullptr);
  }

  void Unmap(Image& image, uint64_t offset, uint64_t length) {
    for (uint64_t at = offset; kind_ != Kind::kFixed && at < offset + length; at += 512) {
      if (kind_ == Kind::kDynamic || IsHere(image, at))
        std::fill_n(model_.begin() + static_cast<ptrdiff_t>(at), 512, 0);
    }
    ASSERT_TRUE(image.Unmap(offset, length).ok());
  }

  void Step(std::unique_ptr<Image>* image) {
    const uint64_t length = (1 + random_() % 64) * 512 * (random_() % 8 == 0 ? 60 : 1);
    const uint64_t offset = random_() % ((disk_ - length) / 512 + 1) * 512;
    const auto at = model_.begin() + static_cast<ptrdiff_t>(offset);
    switch (random_() % 8) {
      case 0:
      case 1:
      case 2: {
        const Bytes bytes(length, static_cast<uint8_t>(random_() | 1));
        Write(**image, offset, bytes);
        std::copy(bytes.begin(), bytes.end(), at);
        break;
      }
      case 3:
        Unmap(**image, offset, length);
        break;
      case 4:
        ASSERT_TRUE((*image)->WriteZeroes(offset, length).ok());
        std::fill_n(at, length, 0);
        break;
      case 5:
        ASSERT_TRUE((*image)->Flush().ok());
        break;
      case 6:
        ASSERT_TRUE((*image)->Close().ok());
        ASSERT_EQ(Complaints(medium_, true), "");
        *image = Open(medium_);
        break;
      case 7:
        ASSERT_EQ(ReadAll(**image, offset, length), Bytes(at, at + static_cast<ptrdiff_t>(length)));
        break;
    }
  }

  const Kind kind_;
  std::mt19937_64 random_;
  uint64_t disk_;
  CrashMedium medium_;
  Bytes model_, parent_;
};

TEST(VhdImageTest, BehavesLikeAnArray) {
  for (uint64_t seed = 0; seed < 60 && !HasFailure(); ++seed) {
    for (const Kind kind : {Kind::kFixed, Kind::kDynamic, Kind::kDifferencing}) {
      SCOPED_TRACE(fmt::format("seed {} kind {}", seed, static_cast<int>(kind)));
      Model(kind, seed).Run();
    }
  }
}

}  // namespace
}  // namespace kvmbus::virtdev
