// SPDX-License-Identifier: Apache-2.0
#include "vmm/saved_state/ram_loader.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "vmm/saved_state/ram_saver.h"
#include "vmm/saved_state/ram_test_memory.h"

namespace kvmbus::vmm {
namespace {

constexpr uint64_t kRam = 32u << 20;
constexpr uint64_t kBlocks = kRam / kRamBlockBytes;

/// Into huge pages (true) if 16 of them are free: vm.nr_hugepages.
class RamLoaderTest : public testing::TestWithParam<bool> {
 protected:
  RamLoaderTest() : saved_(kRam), target_(kBlocks), restored_(kRam, GetParam()) {
    std::mt19937 random{3};
    for (int i = 0; i < 2000; ++i)  // in every other block
      saved_.WritePage(random() % kRamBlockPages + random() % (kBlocks / 2) * 2 * kRamBlockPages,
                       static_cast<uint8_t>(random()));
    RamSaver saver(*saved_.memory, saved_, target_, RamSaver::Options(), nullptr);
    EXPECT_TRUE(saver.CopyLive().ok());
    EXPECT_TRUE(saver.HoldRest().ok());
    EXPECT_TRUE(saver.CopyRest().ok());
  }
  void SetUp() override {
    if (GetParam() && !restored_.HasHugePages()) GTEST_SKIP() << "the host has no huge pages";
  }
  Result<std::unique_ptr<RamLoader>> Start(RamLoader::Options options, RamSource source) {
    return RamLoader::Start(*restored_.memory, std::move(source), options,
                            [this](const Error&) { ++failures_; });
  }
  static RamLoader::Options Threads(unsigned prefetch) {
    RamLoader::Options options;
    options.prefetch_threads = prefetch;
    return options;
  }

  ModelGuest saved_;
  PlainTarget target_;
  ModelGuest restored_;
  std::atomic<int> failures_{0};
};

INSTANTIATE_TEST_SUITE_P(SmallAndHugePages, RamLoaderTest, testing::Bool());

TEST_P(RamLoaderTest, AllIsThereWhenItIsFinished) {
  auto loader = Start(Threads(2), target_.Source());
  ASSERT_TRUE(loader.ok()) << loader.error().ToString();
  (*loader)->Finish();
  EXPECT_EQ(restored_.memory->NextBacked(kRamBlockBytes, kRamBlockBytes).has_value(), GetParam())
      << "a block that was zero has no pages, but where they are set aside";
  EXPECT_EQ(restored_.Content(), saved_.Content());
  EXPECT_EQ(failures_, 0);
}

TEST_P(RamLoaderTest, WhatIsTouchedComesAtOnceAndWhatIsWrittenStays) {
  auto loader = Start(Threads(1), target_.Source());
  ASSERT_TRUE(loader.ok());
  (*loader)->Prefetch();
  std::string expected = saved_.Content();
  std::mt19937 random{9};
  for (int i = 0; i < 2000; ++i) {
    const uint64_t page = random() % restored_.memory->ram_pages();
    uint8_t byte = 0;
    ASSERT_TRUE(restored_.memory->Read(page * kPageSize + 5, &byte, 1));
    ASSERT_EQ(byte, static_cast<uint8_t>(expected[page * kPageSize + 5])) << page;
    if (i % 4 != 0) continue;
    restored_.WritePage(page, static_cast<uint8_t>(i));
    std::fill_n(expected.begin() + static_cast<ptrdiff_t>(page * kPageSize), kPageSize,
                static_cast<char>(i));
  }
  (*loader)->Finish();
  EXPECT_EQ(restored_.Content(), expected);
}

TEST_P(RamLoaderTest, PagesThatAreMappedElsewhereComeFirst) {
  auto loader = Start(Threads(1), target_.Source());
  ASSERT_TRUE(loader.ok());
  std::vector<uint64_t> pfns;
  for (uint64_t block = kBlocks; block-- > 0;) pfns.push_back(block * kRamBlockPages + 17);
  const auto mapping = restored_.memory->MapPages(pfns);
  ASSERT_TRUE(mapping.ok());
  const std::string expected = saved_.Content();
  for (size_t i = 0; i < pfns.size(); ++i)
    EXPECT_EQ(0, std::memcmp(mapping->Piece(i * kPageSize, kPageSize).data(),
                             expected.data() + pfns[i] * kPageSize, kPageSize));
}

TEST_P(RamLoaderTest, WhatIsNotNeededAnyMoreIsNotWaitedFor) {
  auto loader = Start(Threads(1), target_.Source());
  ASSERT_TRUE(loader.ok());
  (*loader)->Prefetch();
  loader->reset();
  EXPECT_EQ(failures_, 0);
}

TEST_P(RamLoaderTest, UntilItMayPrefetchWhatIsTouchedComesAndNothingElse) {
  auto loader = Start(Threads(2), target_.Source());
  ASSERT_TRUE(loader.ok());
  // Of huge pages nobody can tell which are there.
  EXPECT_EQ(restored_.memory->NextBacked(0, restored_.memory->ram_bytes()).has_value(), GetParam());
  uint8_t byte = 0;
  ASSERT_TRUE(restored_.memory->Read(5, &byte, 1));
  EXPECT_EQ(byte, static_cast<uint8_t>(saved_.Content()[5]));
  EXPECT_EQ(
      restored_.memory->NextBacked(kRamBlockBytes, restored_.memory->ram_bytes() - kRamBlockBytes)
          .has_value(),
      GetParam());
  for (int i = 0; i < 2; ++i) (*loader)->Prefetch();
  (*loader)->Finish();
  EXPECT_EQ(restored_.Content(), saved_.Content());
}

TEST_P(RamLoaderTest, EagerReadsAllBeforeItReturns) {
  RamLoader::Options options;
  options.lazy = false;
  auto loader = Start(options, target_.Source());
  ASSERT_TRUE(loader.ok());
  EXPECT_EQ(restored_.Content(), saved_.Content());
}

TEST_P(RamLoaderTest, AFileThatCannotBeReadIsAFailure) {
  RamSource source = target_.Source();
  ASSERT_EQ(::ftruncate(source.file.get(), kRamBlockBytes), 0);
  auto loader = Start(Threads(2), std::move(source));
  ASSERT_TRUE(loader.ok());
  (*loader)->Prefetch();
  for (int i = 0; i < 1000 && failures_ == 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(failures_, 1);
  loader->release();  // the process would end; its threads may wait for ever
}

TEST_P(RamLoaderTest, OtherSizesAreRefused) {
  RamSource source = target_.Source();
  source.places.pop_back();
  EXPECT_FALSE(Start(Threads(1), std::move(source)).ok());
}

}  // namespace
}  // namespace kvmbus::vmm
