// SPDX-License-Identifier: Apache-2.0
// Merging a child into its parent: the content, a cancel, and the power cut at any moment.
#include <optional>

#include "virtdev/disk/tools/image_merge.h"
#include "virtdev/disk/vhdx/vhdx_test_image.h"

namespace kvmbus::virtdev {
namespace {

using namespace vhdx_test;

struct Pair {
  CrashMedium child, parent;
  Bytes content;  ///< what a guest sees
};

Bytes ReadChain(CrashMedium& child, CrashMedium& parent) {
  std::vector<std::unique_ptr<Image>> layers;
  layers.push_back(Open(child, true));
  layers.push_back(Open(parent, true));
  if (!layers[0] || !layers[1]) return {};
  const auto& linkage = layers[0]->parent()->linkage;
  EXPECT_NE(std::find(linkage.begin(), linkage.end(), layers[1]->identity()), linkage.end());
  Chain chain(std::move(layers));
  Bytes bytes(kDiskBytes, 0);
  uint64_t done = 0;
  for (const ImageExtent& extent : chain.MapForRead(0, kDiskBytes)) {
    const auto part = std::span(bytes).subspan(done, extent.length);
    if (extent.kind == ImageExtent::Kind::kData) {
      EXPECT_TRUE(extent.file->Read(part, extent.file_offset).ok());
    }
    done += extent.length;
  }
  return bytes;
}

/// Random writes of odd runs of sectors, zeroes and trims, in both layers.
Pair NewPair(uint64_t seed) {
  std::mt19937_64 random(seed);
  Pair pair{{}, NewMedium(), {}};
  const auto fill = [&random](Image& image) {
    for (int i = 0; i < 12; ++i) {
      const uint64_t offset = random() % (kDiskBytes / 512) * 512;
      const uint64_t length = std::min(512 * (1 + random() % 3000), kDiskBytes - offset);
      if (random() % 4 == 0) {
        EXPECT_TRUE(image.WriteZeroes(offset, length).ok());
      } else if (random() % 6 == 0) {
        EXPECT_TRUE(image.Unmap(offset / kBlock * kBlock, kBlock).ok());
      } else {
        Write(image, offset, Bytes(length, static_cast<uint8_t>(1 + random() % 255)));
      }
    }
    EXPECT_TRUE(image.Close().ok());
  };
  fill(*Open(pair.parent));
  ParentReference parent;
  parent.paths = {{ParentReference::Path::Kind::kRelative, ".\\parent.vhdx"}};
  parent.linkage = {Open(pair.parent, true)->identity()};
  CrashFile file(pair.child);
  EXPECT_TRUE(FormatVhdx(file, SmallDisk(), vmm::Guid::Random(), &parent).ok());
  fill(*Open(pair.child));
  Settle(pair.child);
  Settle(pair.parent);
  pair.content = ReadChain(pair.child, pair.parent);
  return pair;
}

vmm::Result<void> Merge(Pair& pair, const Progress& progress = {}) {
  CrashFile child(pair.child);
  return MergeImageFiles(ImageFormat::kVhdx, child, std::make_unique<CrashFile>(pair.parent),
                         progress);
}

void ExpectMerged(Pair& pair) {
  const auto merged = Merge(pair);
  ASSERT_TRUE(merged.ok()) << merged.error().ToString();
  EXPECT_TRUE(Read(*Open(pair.parent, true), 0, kDiskBytes) == pair.content);
  EXPECT_EQ(Complaints(pair.parent), "");
}

TEST(VhdxMergeTest, TheParentHoldsWhatBothHeld) {
  for (uint64_t seed = 0; seed < 12 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Pair pair = NewPair(seed);
    ExpectMerged(pair);
  }
}

TEST(VhdxMergeTest, ACancelLosesNothing) {
  Pair pair = NewPair(100);
  for (const uint64_t limit : {1u << 20, 5u << 20}) {
    const auto merged = Merge(pair, [limit](uint64_t done, uint64_t) { return done < limit; });
    ASSERT_FALSE(merged.ok());
    EXPECT_EQ(merged.error().code(), vmm::Code::kCancelled);
    EXPECT_TRUE(ReadChain(pair.child, pair.parent) == pair.content);
  }
  ExpectMerged(pair);
}

TEST(VhdxMergeTest, AStrangerIsRefusedAndNothingIsWritten) {
  Pair pair = NewPair(200), other = NewPair(201);
  const SparseBytes before = other.parent.now;
  CrashFile child(pair.child);
  EXPECT_FALSE(
      MergeImageFiles(ImageFormat::kVhdx, child, std::make_unique<CrashFile>(other.parent), {})
          .ok());
  EXPECT_TRUE(other.parent.now == before);
  EXPECT_TRUE(ReadChain(pair.child, pair.parent) == pair.content);
}

TEST(VhdxMergeTest, ThePowerMayFailAtAnyMoment) {
  uint64_t events = 1;
  int cuts = 0;
  for (uint64_t cut_at = 0; cut_at < events && !HasFailure(); cut_at += 1 + events / 60) {
    SCOPED_TRACE(fmt::format("cut at {} of {}", cut_at, events));
    Pair pair = NewPair(300 + cut_at % 3);
    std::mt19937_64 random(cut_at);
    std::optional<SparseBytes> child, parent;
    uint64_t event = 0;
    const auto on_event = [&] {
      if (event++ != cut_at) return;
      child = pair.child.Crash(random);
      parent = pair.parent.Crash(random);
      ++cuts;
    };
    pair.child.on_event = pair.parent.on_event = on_event;
    ASSERT_TRUE(Merge(pair).ok());
    events = std::max(events, event);
    if (!child) continue;
    Pair after{CrashMedium(*child), CrashMedium(*parent), pair.content};
    ASSERT_TRUE(ReadChain(after.child, after.parent) == pair.content);
    ASSERT_EQ(Complaints(after.child), "");
    ASSERT_NO_FATAL_FAILURE(ExpectMerged(after));
  }
  EXPECT_GT(cuts, 40);
}

}  // namespace
}  // namespace kvmbus::virtdev
