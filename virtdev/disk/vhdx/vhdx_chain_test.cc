// SPDX-License-Identifier: Apache-2.0
// Differencing VHDX files and chains of them, in memory.
#include <gtest/gtest.h>

#include <deque>
#include <map>

#include "virtdev/disk/vhdx/vhdx_bat.h"
#include "virtdev/disk/vhdx/vhdx_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx_test;
using Kind = ImageExtent::Kind;
using vhdx::kMiB;

constexpr uint64_t kSectorBytes = 512;
/// The BAT's entry of the first chunk's sector bitmap, with blocks of 1 MiB.
constexpr uint64_t kBitmapEntry = 4096;

/// A base of 12 MiB that holds 0xbb everywhere, and an empty child.
class ChildTest : public testing::Test {
 protected:
  ChildTest() {
    base_ = NewMedium();
    auto image = Open(base_);
    Write(*image, 0, Bytes(kDiskBytes, 0xbb));
    EXPECT_TRUE(image->Close().ok());
    top_ = NewChild(base_);
    Reopen();
  }

  void Reopen() {
    chain_.reset();
    chain_ = OpenAsChain({&top_, &base_});
  }
  Image& top() { return chain_->top(); }
  void CloseAndCheck() {
    ASSERT_TRUE(chain_->Close().ok());
    EXPECT_EQ(Complaints(top_, true), "");
    Reopen();
  }
  vhdx::BlockState StateOf(uint64_t block) {
    return static_cast<vhdx::BlockState>(PeekBat(top_, block) & vhdx::kStateMask);
  }
  /// What a byte of the disk reads as.
  int At(uint64_t offset) {
    return Read(*chain_, offset / kSectorBytes * kSectorBytes, kSectorBytes)[0];
  }

  CrashMedium base_, top_;
  std::unique_ptr<Chain> chain_;
};

TEST_F(ChildTest, AnEmptyChildShowsItsParent) {
  EXPECT_EQ(Complaints(top_, true), "");
  EXPECT_NE(top().parent(), nullptr);
  EXPECT_EQ(top().parent()->linkage.at(0), chain_->layers()[1]->identity());
  EXPECT_EQ(Read(*chain_, 0, kDiskBytes), Bytes(kDiskBytes, 0xbb));
  const SparseBytes before = base_.now;
  Write(top(), 0, Bytes(kBlock, 1));
  CloseAndCheck();
  EXPECT_TRUE(base_.now == before) << "a parent is never written";
}

TEST_F(ChildTest, APartialWriteBringsItsSectorsAndNoOthers) {
  Write(top(), 3 * kSectorBytes, Bytes(5 * kSectorBytes, 1));
  ASSERT_TRUE(top().Flush().ok());
  EXPECT_EQ(StateOf(0), vhdx::kPartiallyPresent);
  const uint64_t bitmap = PeekBat(top_, kBitmapEntry);
  EXPECT_EQ(bitmap & vhdx::kStateMask, vhdx::kFullyPresent);
  EXPECT_EQ(top_.now.Read(bitmap & vhdx::kOffsetMask, 2), (Bytes{0xf8, 0})) << "lowest bit first";
  CloseAndCheck();
  Bytes expected(kBlock, 0xbb);
  std::fill_n(expected.begin() + 3 * kSectorBytes, 5 * kSectorBytes, 1);
  EXPECT_EQ(Read(*chain_, 0, kBlock), expected);
}

TEST_F(ChildTest, AWholeBlockNeedsNoBitmap) {
  Write(top(), kBlock, Bytes(kBlock, 1));
  ASSERT_TRUE(top().Flush().ok());
  EXPECT_EQ(StateOf(1), vhdx::kFullyPresent);
  EXPECT_EQ(PeekBat(top_, kBitmapEntry), 0u);
  CloseAndCheck();
  EXPECT_EQ(Read(*chain_, kBlock, kBlock), Bytes(kBlock, 1));
}

TEST_F(ChildTest, ABlockThatIsWrittenSectorBySectorBecomesWhole) {
  for (uint64_t at = 0; at < kBlock; at += 64 * kSectorBytes) {
    EXPECT_NE(StateOf(0), vhdx::kFullyPresent);
    Write(top(), (at + kBlock / 2) % kBlock, Bytes(64 * kSectorBytes, 2));
    ASSERT_TRUE(top().Flush().ok());
  }
  EXPECT_EQ(StateOf(0), vhdx::kFullyPresent);
  CloseAndCheck();
  EXPECT_EQ(Read(*chain_, 0, kBlock), Bytes(kBlock, 2));
}

// Between MapForWrite and WriteDone the data is not there yet: nobody may find it, nor may a flush
// say that it is there.
TEST_F(ChildTest, AWriteUnderWayIsNotSeen) {
  for (const uint64_t length : {kSectorBytes, kBlock}) {
    SCOPED_TRACE(length);
    const uint64_t block = length == kBlock ? 1 : 0;
    const auto extents = top().MapForWrite(block * kBlock, length);
    ASSERT_TRUE(extents.ok());
    EXPECT_EQ(At(block * kBlock), 0xbb);
    ASSERT_TRUE(top().Flush().ok());
    EXPECT_EQ(StateOf(block), vhdx::kNotPresent);
    ASSERT_TRUE((*extents)[0].file->Write(Bytes(length, 3), (*extents)[0].file_offset).ok());
    EXPECT_EQ(At(block * kBlock), 0xbb);
    top().WriteDone(block * kBlock, length);
    EXPECT_EQ(At(block * kBlock), 3);
    EXPECT_EQ(At(block * kBlock + kBlock - 1), length == kBlock ? 3 : 0xbb);
  }
}

TEST_F(ChildTest, DataIsDurableBeforeItsBits) {
  for (const uint64_t sector : {0, 8, 16}) {  // the first makes the block, the others change bits
    Write(top(), sector * kSectorBytes, Bytes(kSectorBytes, 4));
    const uint64_t flushes = top_.flushes;
    uint64_t writes = 0;
    bool early = false;
    top_.on_event = [&] { early = early || (top_.flushes == flushes && writes++ != 0); };
    ASSERT_TRUE(top().Flush().ok());
    top_.on_event = nullptr;
    EXPECT_EQ(top_.flushes - flushes, 2u);
    EXPECT_FALSE(early) << "the log was written before the data was flushed";
  }
  // Nothing new: one flush of the data.
  Write(top(), 0, Bytes(kSectorBytes, 5));
  const uint64_t flushes = top_.flushes;
  ASSERT_TRUE(top().Flush().ok());
  EXPECT_EQ(top_.flushes - flushes, 1u);
}

TEST_F(ChildTest, AWriteThatFailedLeavesNothing) {
  ASSERT_TRUE(top().MapForWrite(0, kBlock).ok());
  ASSERT_TRUE(top().MapForWrite(kBlock, kSectorBytes).ok());
  const uint64_t size = top_.now.size();
  CloseAndCheck();
  EXPECT_EQ(top_.now.size(), size - kBlock) << "the end is cut off; the bitmap is not in it";
  EXPECT_EQ(Read(*chain_, 0, kDiskBytes), Bytes(kDiskBytes, 0xbb));
}

TEST_F(ChildTest, AWriteUnderWayKeepsItsSpaceThoughItsBlockIsUnmapped) {
  const uint32_t token = top().gate().Enter();
  const uint64_t place = top().MapForWrite(0, kSectorBytes)->at(0).file_offset;
  ASSERT_TRUE(top().Unmap(0, kBlock).ok());
  EXPECT_NE(top().MapForWrite(kBlock, kSectorBytes)->at(0).file_offset, place);
  top().WriteDone(0, kSectorBytes);
  EXPECT_EQ(At(0), 0) << "its block is empty";
  top().gate().Leave(token);
  EXPECT_EQ(top().MapForWrite(2 * kBlock, kSectorBytes)->at(0).file_offset, place);
}

TEST_F(ChildTest, AnUnmapHidesTheParent) {
  Write(top(), 2 * kBlock, Bytes(kSectorBytes, 1));
  ASSERT_TRUE(top().Unmap(0, 3 * kBlock).ok());
  EXPECT_EQ(Read(*chain_, 0, 3 * kBlock), Bytes(3 * kBlock, 0));
  ASSERT_TRUE(top().Flush().ok());
  for (uint64_t block = 0; block < 3; ++block) EXPECT_EQ(StateOf(block), vhdx::kUnmapped);
  CloseAndCheck();
  EXPECT_EQ(Read(*chain_, 0, 3 * kBlock), Bytes(3 * kBlock, 0));
  // A part of it that is written does not bring the parent's rest back.
  Write(top(), kSectorBytes, Bytes(kSectorBytes, 1));
  EXPECT_EQ(At(0), 0);
  EXPECT_EQ(At(kSectorBytes), 1);
  ASSERT_TRUE(top().Flush().ok());
  EXPECT_EQ(StateOf(0), vhdx::kFullyPresent);
}

TEST_F(ChildTest, ZeroesHideTheParentToo) {
  ASSERT_TRUE(top().WriteZeroes(0, kBlock).ok());
  ASSERT_TRUE(top().WriteZeroes(kBlock + kSectorBytes, kSectorBytes).ok());
  ASSERT_TRUE(top().Unmap(2 * kBlock + kSectorBytes, kSectorBytes).ok());
  Write(top(), 3 * kBlock, Bytes(kSectorBytes, 1));
  ASSERT_TRUE(top().WriteZeroes(3 * kBlock, kBlock).ok());
  CloseAndCheck();
  EXPECT_EQ(StateOf(0), vhdx::kZeroState);
  EXPECT_EQ(PeekBat(top_, 0), uint64_t{vhdx::kZeroState}) << "without a place";
  Bytes part(3 * kSectorBytes, 0xbb);
  std::fill_n(part.begin() + kSectorBytes, kSectorBytes, 0);
  EXPECT_EQ(Read(*chain_, 0, kBlock), Bytes(kBlock, 0));
  EXPECT_EQ(Read(*chain_, kBlock, 3 * kSectorBytes), part);
  EXPECT_EQ(Read(*chain_, 2 * kBlock, 3 * kSectorBytes), part);
  EXPECT_EQ(Read(*chain_, 3 * kBlock, kBlock), Bytes(kBlock, 0));
}

// What another program has left in a bitmap for a block that is not present.
TEST_F(ChildTest, OldBitsDoNotComeToLife) {
  Write(top(), 0, Bytes(kSectorBytes, 1));
  ASSERT_TRUE(chain_->Close().ok());
  const uint64_t bitmap = PeekBat(top_, kBitmapEntry) & vhdx::kOffsetMask;
  top_.now.Write(Bytes(256, 0xff), bitmap + 256);  // block 1
  Reopen();
  EXPECT_EQ(At(kBlock), 0xbb);
  Write(top(), kBlock + 8 * kSectorBytes, Bytes(kSectorBytes, 1));
  EXPECT_EQ(At(kBlock), 0xbb);
  CloseAndCheck();
  EXPECT_EQ(At(kBlock), 0xbb);
  EXPECT_EQ(At(kBlock + 8 * kSectorBytes), 1);
}

TEST_F(ChildTest, ABitmapTakesFreeSpaceAndStays) {
  Write(top(), 0, Bytes(kBlock, 1));
  Write(top(), kBlock, Bytes(kBlock, 1));
  ASSERT_TRUE(top().Unmap(0, kBlock).ok());
  ASSERT_TRUE(top().Flush().ok());
  const uint64_t size = top_.now.size();
  top_.now.Write(Bytes(kBlock, 0xff), 4 * kMiB);  // what has been there
  ASSERT_TRUE(top().MapForWrite(2 * kBlock, kSectorBytes).ok());
  top().WriteDone(2 * kBlock, kSectorBytes);
  ASSERT_TRUE(top().Flush().ok());
  EXPECT_EQ(top_.now.size(), size + kBlock) << "for the block alone";
  EXPECT_EQ(PeekBat(top_, kBitmapEntry), 4 * kMiB | vhdx::kFullyPresent);
  EXPECT_EQ(At(3 * kBlock - 1), 0xbb) << "the space was cleared";
  ASSERT_TRUE(top().Unmap(2 * kBlock, kBlock).ok());
  CloseAndCheck();
  EXPECT_EQ(PeekBat(top_, kBitmapEntry), 4 * kMiB | vhdx::kFullyPresent);
}

TEST_F(ChildTest, ABitmapThatCannotBeReadFailsTheReadAndShowsNothing) {
  Write(top(), 0, Bytes(kSectorBytes, 1));
  ASSERT_TRUE(chain_->Close().ok());
  CrashMedium shorter(top_.now);
  Reopen();
  top_.now.Resize(4 * kMiB);  // somebody cuts the file off while it is open
  const auto extents = chain_->MapForRead(0, kSectorBytes);
  ASSERT_EQ(extents.size(), 1u);
  ASSERT_EQ(extents[0].kind, Kind::kData);
  Bytes bytes(kSectorBytes);
  EXPECT_FALSE(extents[0].file->Read(bytes, extents[0].file_offset).ok());
}

TEST_F(ChildTest, HostileEntriesAreRefused) {
  Write(top(), 0, Bytes(kSectorBytes, 1));
  ASSERT_TRUE(chain_->Close().ok());
  const uint64_t block = PeekBat(top_, 0), bitmap = PeekBat(top_, kBitmapEntry);
  const struct {
    uint64_t index, entry;
    const char* why;
  } kCases[] = {
      {kBitmapEntry, 0, "no sector bitmap"},
      {kBitmapEntry, (block & vhdx::kOffsetMask) | 6, "overlaps"},
      {kBitmapEntry, kMiB | 6, "overlaps"},
      {kBitmapEntry, bitmap | 1, "state 7"},
      {kBitmapEntry, 1000 * kMiB | 6, "past the end"},
      {kBitmapEntry, 6, "header area"},
      {1, (bitmap & vhdx::kOffsetMask) | 7, "overlaps"},
      {1, 1000 * kMiB | 7, "past the end"},
      {1, 5, "state 5"},
  };
  for (const auto& [index, entry, why] : kCases) {
    CrashMedium hostile(top_.now);
    PokeBat(hostile, index, entry);
    EXPECT_NE(WhyNot(hostile).find(why), std::string::npos)
        << index << " " << entry << ": " << WhyNot(hostile);
    EXPECT_NE(Complaints(hostile), "") << index << " " << entry;
  }
  CrashMedium without_parent = NewMedium();
  PokeBat(without_parent, 0, 3 * kMiB | 7);
  EXPECT_NE(WhyNot(without_parent).find("without parent"), std::string::npos);
}

// More pages of bitmaps than memory keeps, and more than one entry of the log takes.
TEST(VhdxChainTest, AWideDiskInOneFlush) {
  CreateDiskOptions options = SmallDisk();
  options.size_bytes = uint64_t{9} << 30;  // three chunks
  CrashMedium base = NewMedium(options);
  CrashMedium top = NewChild(base, options);
  std::mt19937_64 random(1);
  std::map<uint64_t, uint8_t> model;
  for (int session = 0; session < 3; ++session) {
    auto chain = OpenAsChain({&top, &base});
    for (int i = 0; i < 300; ++i) {
      const uint64_t at = random() % (options.size_bytes / kSectorBytes) * kSectorBytes;
      model[at] = static_cast<uint8_t>(random() | 1);
      Write(chain->top(), at, Bytes(kSectorBytes, model[at]));
      if (random() % 100 == 0) {
        ASSERT_TRUE(chain->top().Flush().ok());
      }
    }
    ASSERT_TRUE(session == 1 ? chain->top().Flush().ok() : chain->Close().ok());
    ASSERT_EQ(Complaints(top), "");
    chain = OpenAsChain({&top, &base}, true);
    for (const auto& [at, value] : model) {
      ASSERT_EQ(Read(*chain, at, kSectorBytes), Bytes(kSectorBytes, value)) << at;
      if (at == 0 || model.count(at - kSectorBytes) != 0) continue;
      ASSERT_EQ(Read(*chain, at - kSectorBytes, kSectorBytes), Bytes(kSectorBytes, 0)) << at;
    }
  }
}

// What is in the log and could not be written in place is in memory, however much is read
// meanwhile.
TEST(VhdxChainTest, ABitmapThatIsOnlyInTheLogIsNotForgotten) {
  CreateDiskOptions options = SmallDisk();
  options.size_bytes = uint64_t{4} << 30;
  CrashMedium base = NewMedium(options);
  CrashMedium top = NewChild(base, options);
  auto chain = OpenAsChain({&top, &base});
  const auto place = [](uint64_t i) { return i * 16 * kMiB; };  // a page of the bitmap each
  for (uint64_t i = 0; i < 200; ++i) Write(chain->top(), place(i), Bytes(kSectorBytes, 1));
  ASSERT_TRUE(chain->top().Flush().ok());
  Write(chain->top(), place(0) + kSectorBytes, Bytes(kSectorBytes, 2));
  const uint64_t flushes = top.flushes;
  top.on_event = [&] { top.fail_writes = top.flushes == flushes + 1 && !top.pending.empty(); };
  ASSERT_TRUE(chain->top().Flush().ok());
  top.on_event = nullptr;
  top.fail_writes = false;
  for (uint64_t i = 1; i < 200; ++i)
    ASSERT_EQ(Read(*chain, place(i), kSectorBytes), Bytes(kSectorBytes, 1));
  EXPECT_EQ(Read(*chain, place(0) + kSectorBytes, kSectorBytes), Bytes(kSectorBytes, 2));
  ASSERT_TRUE(chain->Close().ok());
  EXPECT_EQ(Complaints(top, true), "");
  chain = OpenAsChain({&top, &base}, true);
  EXPECT_EQ(Read(*chain, place(0) + kSectorBytes, kSectorBytes), Bytes(kSectorBytes, 2));
}

TEST(VhdxChainTest, ItAsksForAFlushBeforeBitmapsFillMemory) {
  CreateDiskOptions options = SmallDisk();
  options.size_bytes = uint64_t{16} << 30;
  CrashMedium base = NewMedium(options);
  CrashMedium top = NewChild(base, options);
  auto image = Open(top);
  int wanted = 0;
  for (uint64_t at = 0; at < options.size_bytes; at += 16 * kMiB) {
    Write(*image, at, Bytes(kSectorBytes, 1));
    wanted += image->WantsFlush();
  }
  EXPECT_EQ(wanted, 1);
  ASSERT_TRUE(image->Flush().ok());
  EXPECT_FALSE(image->WantsFlush());
}

/// A chain of images in memory that grows at its top.
class GrowingChain {
 public:
  explicit GrowingChain(const CreateDiskOptions& options) {
    media_.push_back(NewMedium(options));
    Open();
  }
  void Open(bool read_only = false) {
    chain_.reset();
    std::vector<CrashMedium*> media;
    for (CrashMedium& medium : media_) media.push_back(&medium);
    chain_ = OpenAsChain(media, read_only);
  }
  /// `dirty`: as after a crash that lost nothing.
  void Leave(bool dirty) {
    const auto left = dirty ? chain_->top().Flush() : chain_->Close();
    ASSERT_TRUE(left.ok()) << left.error().ToString();
    chain_.reset();
    for (CrashMedium& medium : media_)
      ASSERT_EQ(Complaints(medium, !dirty && &medium == &media_[0]), "");
  }
  void AddChild(const CreateDiskOptions& options) {
    media_.push_front(NewChild(media_.front(), options));
  }
  size_t size() const { return media_.size(); }
  Chain& chain() { return *chain_; }
  Image& top() { return chain_->top(); }

 private:
  std::deque<CrashMedium> media_;
  std::unique_ptr<Chain> chain_;
};

// Random operations against a plain array: closes, crashes that lose nothing and new children in
// between. Blocks of different sizes, sectors of both.
TEST(VhdxChainTest, BehavesLikeAnArray) {
  for (uint64_t seed = 0; seed < 40 && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 random(seed);
    CreateDiskOptions options = SmallDisk();
    options.logical_sector = seed % 5 == 4 ? 4096 : 512;
    const uint64_t sector = options.logical_sector;
    const uint64_t disk = 6 * kMiB - seed % 3 * sector;
    options.size_bytes = disk;
    Bytes model(disk, 0);
    GrowingChain images(options);
    for (int step = 0; step < 120; ++step) {
      const uint64_t length = std::min(
          disk, (1 + random() % 64) * sector * (random() % 8 == 0 ? 4096 / (sector / 512) : 1));
      uint64_t offset = random() % ((disk - length) / sector + 1) * sector;
      if (random() % 4 == 0) offset = std::min(offset / kBlock * kBlock, disk - length);
      const auto at = model.begin() + static_cast<ptrdiff_t>(offset);
      switch (random() % 10) {
        case 0:
        case 1:
        case 2:
        case 3: {
          const Bytes bytes(length, static_cast<uint8_t>(random() | 1));
          Write(images.top(), offset, bytes);
          std::copy(bytes.begin(), bytes.end(), at);
          break;
        }
        case 4:
          ASSERT_TRUE(images.top().Unmap(offset, length).ok());
          std::fill_n(at, length, 0);
          break;
        case 5:
          ASSERT_TRUE(images.top().WriteZeroes(offset, length).ok());
          std::fill_n(at, length, 0);
          break;
        case 6:
          ASSERT_TRUE(images.top().Flush().ok());
          break;
        case 7: {
          ASSERT_NO_FATAL_FAILURE(images.Leave(random() % 2 == 0));
          options.block_bytes = random() % 3 == 0 ? 2u << 20 : 1u << 20;
          if (images.size() < 4 && random() % 2 == 0) images.AddChild(options);
          images.Open();
          break;
        }
        default:
          ASSERT_EQ(Read(images.chain(), offset, length),
                    Bytes(at, at + static_cast<ptrdiff_t>(length)))
              << "step " << step;
      }
    }
    ASSERT_NO_FATAL_FAILURE(images.Leave(seed % 2 == 0));
    images.Open(true);
    ASSERT_EQ(Read(images.chain(), 0, disk), model);
  }
}

// A layer that counts how often it is asked.
class CountedImage final : public Image {
 public:
  CountedImage(std::unique_ptr<Image> image, uint64_t* asked)
      : image_(std::move(image)), asked_(*asked) {}
  const DiskInfo& info() const override { return image_->info(); }
  std::string_view format() const override { return image_->format(); }
  BlockFile& file() override { return image_->file(); }
  const ParentReference* parent() const override { return image_->parent(); }
  uint64_t block_bytes() const override { return image_->block_bytes(); }
  void MapLayer(uint64_t offset, uint64_t length, std::vector<ImageExtent>* extents) override {
    ++asked_;
    image_->MapLayer(offset, length, extents);
  }
  vmm::Result<std::vector<ImageExtent>> MapForWrite(uint64_t offset, uint64_t length) override {
    return image_->MapForWrite(offset, length);
  }
  vmm::Result<void> Unmap(uint64_t, uint64_t) override { return {}; }
  vmm::Result<void> WriteZeroes(uint64_t, uint64_t) override { return {}; }
  vmm::Result<void> Flush() override { return {}; }
  vmm::Result<void> Close() override { return image_->Close(); }

 private:
  std::unique_ptr<Image> image_;
  uint64_t& asked_;
};

TEST(VhdxChainTest, LayersThatHaveNothingAreAskedOnce) {
  std::deque<CrashMedium> media;
  media.push_back(NewMedium());
  {
    auto image = Open(media[0]);
    Write(*image, 0, Bytes(kDiskBytes, 5));
    ASSERT_TRUE(image->Close().ok());
  }
  for (int i = 0; i < 20; ++i) media.push_front(NewChild(media.front()));
  std::vector<std::unique_ptr<Image>> layers;
  uint64_t asked = 0;
  for (CrashMedium& medium : media)
    layers.push_back(std::make_unique<CountedImage>(Open(medium, true), &asked));
  Chain chain(std::move(layers));
  EXPECT_EQ(Read(chain, 0, kSectorBytes), Bytes(kSectorBytes, 5));
  EXPECT_GT(asked, 20u);
  asked = 0;
  for (uint64_t at = 0; at < kBlock; at += 16 * kSectorBytes)
    EXPECT_EQ(Read(chain, at, kSectorBytes), Bytes(kSectorBytes, 5));
  EXPECT_EQ(asked, 2 * kBlock / kSectorBytes / 16) << "the top and the base";
}

}  // namespace
}  // namespace kvmbus::virtdev
