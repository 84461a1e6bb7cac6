// SPDX-License-Identifier: Apache-2.0
// Offline operations on VHD files: resize, compact, merge and relink, against a disk in memory and
// under power cuts at any moment.
#include "virtdev/disk/vhd/vhd_edit.h"

#include "tests/fakes/power_cuts.h"
#include "virtdev/disk/tools/image_merge.h"
#include "virtdev/disk/vhd/vhd_compact.h"
#include "virtdev/disk/vhd/vhd_relink.h"
#include "virtdev/disk/vhd/vhd_resize.h"
#include "virtdev/disk/vhd/vhd_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhd_test;

std::unique_ptr<BlockFile> FileOn(CrashMedium& medium) {
  return std::make_unique<CrashFile>(medium);
}
vmm::Result<void> Resize(CrashMedium& medium, uint64_t bytes) {
  return vhd::ResizeVhd(FileOn(medium), bytes);
}
vmm::Result<void> Compact(CrashMedium& medium, bool find_zeroes = true,
                          const Progress& progress = {}) {
  return vhd::CompactVhd(FileOn(medium), find_zeroes, progress);
}
void Settle(CrashMedium& medium) {
  medium.durable = medium.now;
  medium.pending.clear();
}
Bytes ReadAll(CrashMedium& medium, const Bytes* parent = nullptr) {
  const auto image = Open(medium, true);
  return image ? Read(*image, 0, image->info().size_bytes, parent) : Bytes();
}
Bytes ParentContent(uint64_t size = kDiskBytes) {
  Bytes bytes(size);
  for (uint64_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(i / kUnit * 2 + 2);
  return bytes;
}

/// Writes whole sectors at random, zeroes now and then; `model` follows.
void WriteAtRandom(CrashMedium& medium, std::mt19937_64& random, int steps, Bytes* model) {
  auto image = Open(medium);
  const uint64_t size = model->size();
  for (int step = 0; step < steps; ++step) {
    const uint64_t offset = random() % (size / 512) * 512;
    const uint64_t length = std::min((1 + random() % 1500) * 512, size - offset);
    const auto value = static_cast<uint8_t>(random() % 3 == 0 ? 0 : random() | 1);
    Write(*image, offset, Bytes(length, value));
    std::fill_n(model->begin() + static_cast<ptrdiff_t>(offset), length, value);
  }
  ASSERT_TRUE(image->Close().ok());
}

/// What is left by power cuts at any moment of `work`.
template <typename Work>
std::vector<SparseBytes> CutsOf(CrashMedium medium, Work work) {
  auto cuts = tests::CutsOf(medium, {8, 8, 40, 29}, [&](CrashMedium& whole) {
    const auto done = work(whole);
    EXPECT_TRUE(done.ok()) << (done.ok() ? "" : done.error().ToString());
  });
  EXPECT_GT(cuts.size(), 20u);
  return cuts;
}

/// Eight blocks; a child has large ones.
uint64_t BlockBytes(Kind kind) { return kind == Kind::kDifferencing ? 2u << 20 : kBlock; }

/// Data in every block, and the first ones written last.
CrashMedium FullDisk(Kind kind, Bytes* model) {
  const uint64_t block_bytes = BlockBytes(kind), size = 8 * block_bytes;
  CrashMedium medium = NewMedium(kind, size);
  *model = kind == Kind::kDifferencing ? ParentContent(size) : Bytes(size, 0);
  auto image = Open(medium);
  for (uint64_t block = 8; block-- > 0;) {
    const Bytes bytes(5 * kUnit, static_cast<uint8_t>(block + 1));
    for (const uint64_t at : {block * block_bytes, (block + 1) * block_bytes - bytes.size()}) {
      Write(*image, at, bytes);
      std::copy(bytes.begin(), bytes.end(), model->begin() + static_cast<ptrdiff_t>(at));
    }
  }
  EXPECT_TRUE(image->Close().ok());
  Settle(medium);
  return medium;
}

class VhdResizeTest : public testing::TestWithParam<Kind> {};

TEST_P(VhdResizeTest, WhatWasThereStaysAndTheRestIsZeroes) {
  constexpr uint64_t kSizes[] = {kDiskBytes + 512, 3 * kBlock + 512, 3 * kBlock, 40 * kBlock, 512,
                                 900 * kBlock};
  Bytes model;
  CrashMedium medium = FullDisk(GetParam(), &model);
  for (const uint64_t size : kSizes) {
    SCOPED_TRACE(size);
    const auto resized = Resize(medium, size);
    ASSERT_TRUE(resized.ok()) << resized.error().ToString();
    model.resize(size, 0);
    ASSERT_TRUE(ReadAll(medium) == model);
    ASSERT_EQ(Complaints(medium), "");
    const auto footer = Peek<vhd::Footer>(medium, EndFooterAt(medium));
    ASSERT_EQ(footer.current_size, size);
    EXPECT_EQ(footer.original_size, kDiskBytes);
    EXPECT_EQ(Complaints(medium, true).find("footer copy"), std::string::npos);
  }
}

// More entries than the first block leaves room for: it moves out of the way.
TEST_P(VhdResizeTest, ALongerBat) {
  if (GetParam() == Kind::kFixed) GTEST_SKIP() << "it has none";
  Bytes model;
  CrashMedium medium = FullDisk(GetParam(), &model);
  const uint64_t before = medium.now.size();
  ASSERT_TRUE(Resize(medium, uint64_t{1} << 40).ok());  // 8 MiB of entries
  const auto image = Open(medium);
  ASSERT_EQ(image->info().size_bytes, uint64_t{1} << 40);
  EXPECT_TRUE(Read(*image, 0, kDiskBytes) == model);
  EXPECT_EQ(Read(*image, kDiskBytes, kDiskBytes), Bytes(kDiskBytes, 0));
  EXPECT_EQ(Complaints(medium), "");
  EXPECT_LT(medium.now.size(), before + (10u << 20));
  Write(*image, (uint64_t{1} << 40) - 512, Bytes(512, 9));
  ASSERT_TRUE(image->Close().ok());
  EXPECT_EQ(Complaints(medium), "");
}

TEST_P(VhdResizeTest, AnyHistory) {
  for (uint64_t seed = 0; seed < 25 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    Bytes model;
    CrashMedium medium = FullDisk(GetParam(), &model);
    for (int life = 0; life < 6; ++life) {
      const uint64_t size = (1 + random() % (20 * kBlock / 512)) * 512;
      ASSERT_TRUE(Resize(medium, size).ok());
      model.resize(size, 0);
      ASSERT_TRUE(ReadAll(medium) == model);
      WriteAtRandom(medium, random, 6, &model);
      if (GetParam() == Kind::kDynamic && random() % 2 == 0) {
        ASSERT_TRUE(Compact(medium).ok());
      }
      ASSERT_TRUE(ReadAll(medium) == model);
      ASSERT_EQ(Complaints(medium), "");
    }
  }
}

TEST_P(VhdResizeTest, AnyMomentLeavesTheOldSizeOrTheNew) {
  Bytes model;
  const CrashMedium disk = FullDisk(GetParam(), &model);
  for (const uint64_t size : {kDiskBytes + 512, 2000 * kBlock, 5 * kBlock + kUnit, 2 * kBlock}) {
    SCOPED_TRACE(size);
    int old_seen = 0, new_seen = 0;
    for (const SparseBytes& cut :
         CutsOf(disk, [&](auto& medium) { return Resize(medium, size); })) {
      CrashMedium after(cut);
      ASSERT_EQ(Complaints(after), "");
      Bytes found = model;
      {
        const auto image = Open(after, true);
        ASSERT_TRUE(image);
        const uint64_t bytes = image->info().size_bytes;
        ASSERT_TRUE(bytes == size || bytes == kDiskBytes) << bytes;
        ++(bytes == size ? new_seen : old_seen);
        found.resize(std::min<uint64_t>(bytes, 2 * kDiskBytes), 0);
        ASSERT_TRUE(Read(*image, 0, found.size()) == found);
      }
      // Whatever was cut, a size after it brings nothing back.
      ASSERT_TRUE(Resize(after, kDiskBytes + kBlock).ok());
      found.resize(std::min<uint64_t>(found.size(), kDiskBytes));
      found.resize(kDiskBytes + kBlock, 0);
      ASSERT_TRUE(ReadAll(after) == found);
      ASSERT_EQ(Complaints(after), "");
    }
    EXPECT_GT(old_seen, 2);
    EXPECT_GT(new_seen, 2);
  }
}

TEST_P(VhdResizeTest, WhatCannotBeIsRefused) {
  Bytes model;
  CrashMedium medium = FullDisk(GetParam(), &model);
  const SparseBytes before = medium.now;
  for (const uint64_t size : {uint64_t{0}, kDiskBytes + 1, uint64_t{2041} << 30})
    EXPECT_FALSE(Resize(medium, size).ok()) << size;
  EXPECT_TRUE(Resize(medium, kDiskBytes).ok()) << "as it is";
  EXPECT_TRUE(medium.now == before);
  CrashMedium child = NewMedium(Kind::kDifferencing);
  EXPECT_EQ(Resize(child, 2 * kDiskBytes).error().code(), vmm::Code::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Types, VhdResizeTest, testing::Values(Kind::kFixed, Kind::kDynamic));

class VhdCompactTest : public testing::TestWithParam<Kind> {
 protected:
  VhdCompactTest() : block_(BlockBytes(GetParam())), below_(ParentContent(8 * block_)) {}
  const Bytes* parent() const { return GetParam() == Kind::kDifferencing ? &below_ : nullptr; }
  /// Blocks 1, 4 and the last one in the file hold nothing, or nothing but zeroes.
  CrashMedium NewDisk(Bytes* model) {
    CrashMedium medium = FullDisk(GetParam(), model);
    auto image = Open(medium);
    for (const uint64_t block : {0, 1, 4}) {
      Write(*image, block * block_, Bytes(block_, 0));
      std::fill_n(model->begin() + static_cast<ptrdiff_t>(block * block_), block_, 0);
    }
    EXPECT_TRUE(image->Close().ok());
    if (parent() == nullptr) return medium;
    // As another program may leave it: a block of which nothing is here.
    for (const uint64_t block : {0, 1, 4}) {
      medium.now.Write(Bytes(vhd::kSector, 0), uint64_t{PeekBat(medium, block)} * vhd::kSector);
      std::copy_n(below_.begin() + static_cast<ptrdiff_t>(block * block_), block_,
                  model->begin() + static_cast<ptrdiff_t>(block * block_));
    }
    return CrashMedium(medium.now);
  }

  const uint64_t block_;
  const Bytes below_;
};

TEST_P(VhdCompactTest, TheFileShrinksToWhatHoldsSomething) {
  Bytes model;
  CrashMedium medium = NewDisk(&model);
  const uint64_t before = medium.now.size();
  ASSERT_TRUE(ReadAll(medium, parent()) == model);
  const auto compacted = Compact(medium);
  ASSERT_TRUE(compacted.ok()) << compacted.error().ToString();
  EXPECT_TRUE(ReadAll(medium, parent()) == model);
  EXPECT_EQ(Complaints(medium, true), "");
  EXPECT_LE(medium.now.size(), before - 3 * block_);
  const uint64_t after = medium.now.size();
  ASSERT_TRUE(Compact(medium).ok()) << "once more";
  EXPECT_EQ(medium.now.size(), after);
  auto image = Open(medium);
  Write(*image, block_ + kUnit, Bytes(kUnit, 5));
  ASSERT_TRUE(image->Close().ok());
  EXPECT_EQ(Complaints(medium), "");
}

TEST_P(VhdCompactTest, AnyHistory) {
  for (uint64_t seed = 0; seed < 30 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    Bytes model;
    CrashMedium medium = NewDisk(&model);
    for (int life = 0; life < 3; ++life) {
      WriteAtRandom(medium, random, 8, &model);
      const uint64_t before = medium.now.size();
      ASSERT_TRUE(Compact(medium, random() % 2 == 0).ok());
      ASSERT_TRUE(ReadAll(medium, parent()) == model);
      ASSERT_EQ(Complaints(medium), "");
      ASSERT_LE(medium.now.size(), before);
    }
  }
}

TEST_P(VhdCompactTest, AnyMomentLeavesTheContent) {
  Bytes model;
  const CrashMedium disk = NewDisk(&model);
  uint64_t length = 0;
  for (const SparseBytes& cut : CutsOf(disk, [&](CrashMedium& medium) {
         auto done = Compact(medium);
         length = medium.now.size();
         return done;
       })) {
    CrashMedium after(cut);
    ASSERT_EQ(Complaints(after), "");
    ASSERT_TRUE(ReadAll(after, parent()) == model);
    ASSERT_TRUE(Compact(after).ok());
    ASSERT_TRUE(ReadAll(after, parent()) == model);
    ASSERT_EQ(Complaints(after), "");
    ASSERT_EQ(after.now.size(), length) << "space was lost";
  }
}

TEST_P(VhdCompactTest, ACancelLosesNothing) {
  Bytes model;
  CrashMedium medium = NewDisk(&model);
  for (int stop_at = 1;; ++stop_at) {
    ASSERT_LT(stop_at, 100);
    int step = 0;
    const auto done = Compact(medium, true, [&](uint64_t, uint64_t) { return ++step < stop_at; });
    ASSERT_TRUE(ReadAll(medium, parent()) == model);
    ASSERT_EQ(Complaints(medium), "");
    if (done.ok()) break;
    ASSERT_EQ(done.error().code(), vmm::Code::kCancelled);
  }
  CrashMedium fixed = NewMedium(Kind::kFixed);
  EXPECT_EQ(Compact(fixed).error().code(), vmm::Code::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Types, VhdCompactTest,
                         testing::Values(Kind::kDynamic, Kind::kDifferencing));

// As other programs leave blocks: what lies in sectors that are not here is not looked at.
TEST(VhdCompactHolesTest, OnlySectorsThatAreHereCount) {
  for (const uint8_t first : {0, 5}) {
    CrashMedium medium = NewMedium();
    {
      auto image = Open(medium);
      Write(*image, 2 * kBlock, Bytes(kBlock, 0x77));
      ASSERT_TRUE(image->Close().ok());
    }
    const uint64_t place = uint64_t{PeekBat(medium, 2)} * vhd::kSector;
    Bytes bits(vhd::kSector, 0);
    bits[0] = 0x80;
    medium.now.Write(bits, place);
    medium.now.Write(Bytes(vhd::kSector, first), place + vhd::kSector);
    const Bytes before = ReadAll(medium);
    EXPECT_EQ(before[2 * kBlock], first);
    ASSERT_TRUE(Compact(medium).ok());
    EXPECT_EQ(PeekBat(medium, 2) == vhd::kUnallocated, first == 0);
    EXPECT_TRUE(ReadAll(medium) == before);
    EXPECT_EQ(Complaints(medium), "");
  }
}

/// The child says that its parent is `identity`.
CrashMedium ChildOf(const vmm::Guid& identity) {
  CrashMedium medium;
  CrashFile file(medium);
  VhdParent parent = SomeParent();
  parent.identity = identity;
  EXPECT_TRUE(FormatVhdChild(file, parent).ok());
  return medium;
}

vmm::Result<void> Merge(CrashMedium& child, CrashMedium& parent) {
  const auto from = TRY(TryOpen(child, true));
  const auto to = TRY(TryOpen(parent));
  TRY_VOID(CheckMergePair(*from, *to));
  return MergeLayer(*from, *to, {});
}

TEST(VhdMergeTest, TheParentHoldsWhatBothHeldAtAnyMoment) {
  for (const Kind kind : {Kind::kFixed, Kind::kDynamic}) {
    std::mt19937_64 random(3);
    CrashMedium parent = NewMedium(kind);
    Bytes below(kDiskBytes, 0);
    WriteAtRandom(parent, random, 8, &below);
    CrashMedium child = ChildOf(Open(parent, true)->identity());
    Bytes model = below;
    WriteAtRandom(child, random, 8, &model);
    ASSERT_TRUE(ReadAll(child, &below) == model);
    for (const SparseBytes& cut :
         CutsOf(parent, [&](CrashMedium& medium) { return Merge(child, medium); })) {
      CrashMedium after(cut);
      ASSERT_EQ(Complaints(after), "");
      const Bytes changed = ReadAll(after);
      ASSERT_TRUE(ReadAll(child, &changed) == model) << "the chain holds something else";
      ASSERT_TRUE(Merge(child, after).ok());
      ASSERT_TRUE(ReadAll(after) == model);
      ASSERT_EQ(Complaints(after), "");
    }
  }
  CrashMedium stranger = NewMedium(), child = ChildOf(vmm::Guid::Random());
  EXPECT_EQ(Merge(child, stranger).error().code(), vmm::Code::kFailedPrecondition);
}

TEST(VhdRelinkTest, AnyMomentNamesTheOldParentOrTheNew) {
  const Bytes below = ParentContent();
  Bytes model = below;
  std::mt19937_64 random(5);
  CrashMedium disk = NewMedium(Kind::kDifferencing);
  WriteAtRandom(disk, random, 5, &model);
  VhdParent next = SomeParent();
  next.identity = vmm::Guid::Random();
  next.relative_path = ".\\a folder of another name\\and its base.vhd";
  next.absolute_path = "C:\\somewhere else\\" + std::string(600, 'x') + ".vhd";
  const auto relink = [&](CrashMedium& medium) {
    return vhd::ReplaceVhdParent(FileOn(medium), next);
  };
  int old_seen = 0, new_seen = 0;
  for (const SparseBytes& cut : CutsOf(disk, relink)) {
    CrashMedium after(cut);
    ASSERT_EQ(Complaints(after), "");
    {
      const auto image = Open(after, true);
      ASSERT_TRUE(image);
      const bool is_new = image->parent()->linkage.front() == next.identity;
      ++(is_new ? new_seen : old_seen);
      ASSERT_EQ(image->parent()->paths.front().text,
                is_new ? next.relative_path : SomeParent().relative_path);
    }
    ASSERT_TRUE(ReadAll(after, &below) == model);
    ASSERT_TRUE(relink(after).ok());
    ASSERT_TRUE(ReadAll(after, &below) == model);
    ASSERT_EQ(Open(after, true)->parent()->paths.back().text.find("and its base"), 0u);
    ASSERT_EQ(Complaints(after), "");
  }
  EXPECT_GT(old_seen, 5);
  EXPECT_GT(new_seen, 5);
  // Again and again, between writes: nothing piles up, and the header comes back to its place.
  for (int i = 0; i < 20; ++i) {
    next.relative_path = fmt::format(".\\{}.vhd", i);
    ASSERT_TRUE(relink(disk).ok());
    ASSERT_EQ(Open(disk, true)->parent()->paths.front().text, next.relative_path);
  }
  EXPECT_EQ(Complaints(disk, true), "");
  EXPECT_EQ(Peek<vhd::Footer>(disk, 0).data_offset, vhd::kHeaderOffset);
  EXPECT_TRUE(ReadAll(disk, &below) == model);
  CrashMedium dynamic = NewMedium();
  EXPECT_FALSE(relink(dynamic).ok());
  next.size_bytes += 512;
  EXPECT_FALSE(relink(disk).ok());
}

/// The same of an image that is open and written to. The host fails from some write on until the
/// relink has given up; then the image goes on.
TEST(VhdRelinkTest, AnOpenImageGoesOnWhateverBecameOfIt) {
  using Path = ParentReference::Path;
  ParentReference next;
  next.paths = {{Path::Kind::kRelative, ".\\next.vhd"},
                {Path::Kind::kAbsolute, "\\" + std::string(3000, 'y') + "\\next.vhd"}};
  next.linkage = {vmm::Guid::Random()};
  next.modified = 1700000000;
  constexpr uint64_t kSize = 8 * (2u << 20);
  const Bytes below = ParentContent(kSize);
  bool failed = true, old_seen = false;
  for (int fail_at = 0; failed; ++fail_at) {
    SCOPED_TRACE(fail_at);
    ASSERT_LT(fail_at, 200);
    CrashMedium medium = NewMedium(Kind::kDifferencing, kSize);
    Bytes model = below;
    auto image = Open(medium);
    const auto write = [&](uint64_t block, uint8_t value) {
      const uint64_t offset = (block << 21) + 3 * kUnit;
      Write(*image, offset, Bytes(5 * kUnit, value));
      std::fill_n(model.begin() + static_cast<ptrdiff_t>(offset), 5 * kUnit, value);
    };
    write(1, 10);
    int event = 0;
    medium.on_event = [&] { medium.fail_writes = medium.fail_writes || event++ == fail_at; };
    const auto relinked = image->Relink(next);
    medium.on_event = nullptr;
    medium.fail_writes = false;
    failed = !relinked.ok();
    if (!failed) {
      EXPECT_EQ(image->parent()->linkage, next.linkage);
    }
    write(1, 20);
    write(2, 30);
    write(0, 40);
    ASSERT_TRUE(image->Flush().ok());
    ASSERT_TRUE(failed || image->Relink(next).ok()) << "once more";
    write(5, 50);
    ASSERT_TRUE(image->Close().ok());
    image = Open(medium);
    ASSERT_TRUE(image);
    ASSERT_TRUE(Read(*image, 0, kSize, &below) == model);
    ASSERT_EQ(Complaints(medium), "");
    const ParentReference& found = *image->parent();
    const bool is_old = found.linkage.front() == SomeParent().identity;
    old_seen = old_seen || is_old;
    ASSERT_TRUE(is_old ? failed : found.linkage == next.linkage);
    ASSERT_EQ(found.modified, is_old ? SomeParent().modified : next.modified);
  }
  EXPECT_TRUE(old_seen);
}

}  // namespace
}  // namespace kvmbus::virtdev
