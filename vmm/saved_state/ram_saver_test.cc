// SPDX-License-Identifier: Apache-2.0
#include "vmm/saved_state/ram_saver.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "vmm/saved_state/ram_test_memory.h"

namespace kvmbus::vmm {
namespace {

constexpr uint64_t kRam = 32u << 20;
constexpr uint64_t kBlocks = kRam / kRamBlockBytes;

/// With huge pages (true) if 16 of them are free: vm.nr_hugepages.
class RamSaverTest : public testing::TestWithParam<bool> {
 protected:
  RamSaverTest() : guest_(kRam, GetParam()), target_(kBlocks) {}
  void SetUp() override {
    if (GetParam() && !guest_.HasHugePages()) GTEST_SKIP() << "the host has no huge pages";
  }
  static bool CanProtect() { return Userfault::Create(kPageSize).ok(); }

  RamSaver Saver(bool copy_on_write = true, bool compress = false) {
    RamSaver::Options options;
    options.copy_on_write = copy_on_write;
    options.compress = compress;
    return RamSaver(*guest_.memory, guest_, target_, options, nullptr);
  }

  ModelGuest guest_;
  PlainTarget target_;
  std::mt19937 random_{42};
};

INSTANTIATE_TEST_SUITE_P(SmallAndHugePages, RamSaverTest, testing::Bool());

TEST_P(RamSaverTest, WhatIsZeroTakesNoRoom) {
  guest_.WritePage(3, 7);
  guest_.WritePage(5 * kRamBlockPages, 0);
  RamSaver saver = Saver();
  ASSERT_TRUE(saver.CopyLive().ok());
  ASSERT_TRUE(saver.HoldRest().ok());
  ASSERT_TRUE(saver.CopyRest().ok());
  EXPECT_EQ(target_.places(), 1u);
  EXPECT_EQ(guest_.memory->NextBacked(8u << 20, 8u << 20).has_value(), GetParam())
      << "a look must give no pages, but where they are set aside";
  EXPECT_EQ(target_.Content(), guest_.Content());
}

TEST_P(RamSaverTest, WhatTheGuestWritesMeanwhileIsInTheFile) {
  guest_.WriteAtRandom(random_, 4000);
  RamSaver saver = Saver();
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    while (!stop) guest_.WriteAtRandom(random_, 10);
  });
  ASSERT_TRUE(saver.CopyLive().ok());
  stop = true;
  writer.join();
  ASSERT_TRUE(saver.HoldRest().ok());
  const std::string instant = guest_.Content();
  ASSERT_TRUE(saver.CopyRest().ok());
  EXPECT_EQ(target_.Content(), instant);
}

/// The other descriptor takes what is long, or takes nothing at all.
TEST_P(RamSaverTest, WhereItCannotBeWrittenPastTheCacheItIsWrittenAllTheSame) {
  for (const bool works : {true, false}) {
    PlainTarget target(kBlocks);
    target.direct = works ? target.Source().file.Duplicate().value()
                          : Fd(::open("/dev/full", O_WRONLY | O_CLOEXEC));
    guest_.WriteAtRandom(random_, 100);
    for (uint64_t page = 0; page < 3 * kRamBlockPages; ++page) guest_.WritePage(page, 3);
    RamSaver saver(*guest_.memory, guest_, target, RamSaver::Options(), nullptr);
    ASSERT_TRUE(saver.CopyLive().ok());
    guest_.WriteAtRandom(random_, 100);
    ASSERT_TRUE(saver.HoldRest().ok());
    ASSERT_TRUE(saver.CopyRest().ok());
    EXPECT_EQ(target.Content(), guest_.Content());
  }
}

TEST_P(RamSaverTest, TheInstantIsThatOfTheHold) {
  if (!CanProtect()) GTEST_SKIP();
  guest_.WriteAtRandom(random_, 4000);
  {
    RamSaver saver = Saver();
    ASSERT_TRUE(saver.CopyLive().ok());
    for (uint64_t page = 0; page < guest_.memory->ram_pages(); page += 2)
      guest_.WritePage(page, static_cast<uint8_t>(page));  // more than a small rest
    ASSERT_TRUE(saver.HoldRest().ok());
    const std::string instant = guest_.Content();
    std::thread writer([&] {
      std::mt19937 random{7};
      guest_.WriteAtRandom(random, 20000);
    });
    std::thread host([&] {  // I/O of the kernel into guest memory
      Fd zeroes(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
      for (uint64_t block = 0; block < kBlocks; ++block)
        EXPECT_EQ(::read(zeroes.get(), guest_.memory->base() + block * kRamBlockBytes, 8192), 8192);
    });
    ASSERT_TRUE(saver.CopyRest().ok());
    writer.join();
    host.join();
    EXPECT_EQ(target_.Content(), instant);
    EXPECT_NE(guest_.Content(), instant);
  }
  EXPECT_FALSE(guest_.tracking);
}

TEST_P(RamSaverTest, PagesThatAreMappedElsewhereAreSavedInTheHold) {
  if (!CanProtect()) GTEST_SKIP();
  const uint64_t ring[] = {100, 101};
  const auto mapping = guest_.memory->MapPages(ring);
  ASSERT_TRUE(mapping.ok());
  RamSaver saver = Saver();
  ASSERT_TRUE(saver.CopyLive().ok());
  for (uint64_t page = 0; page < guest_.memory->ram_pages(); ++page) guest_.WritePage(page, 9);
  ASSERT_TRUE(saver.HoldRest().ok());
  const std::string instant = guest_.Content();
  const auto piece = mapping->Piece(0, mapping->size());
  std::thread host([piece] { std::memset(piece.data(), 1, piece.size()); });
  if (!guest_.HasHugePages()) host.join();  // else it may wait: it writes what is protected
  ASSERT_TRUE(saver.CopyRest().ok());
  if (host.joinable()) host.join();
  EXPECT_EQ(target_.Content(), instant);
}

TEST_P(RamSaverTest, AStoppedGuestIsCopiedWithoutProtection) {
  guest_.WriteAtRandom(random_, 4000);
  RamSaver saver = Saver(false);
  ASSERT_TRUE(saver.CopyLive().ok());
  guest_.WriteAtRandom(random_, 6000);
  ASSERT_TRUE(saver.HoldRest().ok());
  ASSERT_TRUE(saver.CopyRest().ok());
  EXPECT_EQ(target_.Content(), guest_.Content());
}

TEST_P(RamSaverTest, APageThatBecameZeroIsZeroInTheFile) {
  guest_.WritePage(7, 1);
  guest_.WritePage(8, 1);
  RamSaver saver = Saver();
  ASSERT_TRUE(saver.CopyLive().ok());
  guest_.WritePage(7, 0);
  ASSERT_TRUE(saver.HoldRest().ok());
  ASSERT_TRUE(saver.CopyRest().ok());
  EXPECT_EQ(target_.Content(), guest_.Content());
}

TEST_P(RamSaverTest, CompressedItIsOfTheSameInstant) {
  for (const bool copy_on_write : {false, true}) {
    PlainTarget target(kBlocks);
    guest_.WriteAtRandom(random_, 4000);
    RamSaver::Options options;
    options.copy_on_write = copy_on_write;
    options.compress = true;
    RamSaver saver(*guest_.memory, guest_, target, options, nullptr);
    std::atomic<bool> stop{false};
    std::thread live([&] {
      std::mt19937 random{7};
      while (!stop) guest_.WritePage(random() % (4 * kRamBlockPages), 5);
    });
    ASSERT_TRUE(saver.CopyLive().ok());
    stop = true;
    live.join();
    ASSERT_TRUE(saver.HoldRest().ok());
    const std::string instant = guest_.Content();
    std::thread after([&] {
      std::mt19937 random{8};
      if (copy_on_write) guest_.WriteAtRandom(random, 5000);
    });
    ASSERT_TRUE(saver.CopyRest().ok());
    after.join();
    EXPECT_EQ(target.Content(), instant);
    EXPECT_TRUE(target.IsCompressed(kBlocks - 1)) << "nobody wrote it meanwhile";
  }
}

TEST_P(RamSaverTest, TheStopIsNoLongerForWhatIsCompressed) {
  if (!CanProtect()) GTEST_SKIP();
  guest_.WriteAtRandom(random_, 4000);
  RamSaver saver = Saver(true, true);
  ASSERT_TRUE(saver.CopyLive().ok());
  // Few pages, and each in a block that has to be written as a whole.
  for (uint64_t block = 0; block < kBlocks; ++block) guest_.WritePage(block * kRamBlockPages, 9);
  const uint64_t before = saver.bytes_written();
  ASSERT_TRUE(saver.HoldRest().ok());
  EXPECT_LE(saver.bytes_written() - before, 8u << 20);
  const std::string instant = guest_.Content();
  std::thread writer([&] {
    for (uint64_t block = 0; block < kBlocks; ++block) guest_.WritePage(block * kRamBlockPages, 1);
  });
  ASSERT_TRUE(saver.CopyRest().ok());
  writer.join();
  EXPECT_EQ(target_.Content(), instant);
}

TEST_P(RamSaverTest, AfterAFailureTheGuestRunsOn) {
  if (!CanProtect()) GTEST_SKIP();
  {
    RamSaver saver = Saver();
    ASSERT_TRUE(saver.CopyLive().ok());
    for (uint64_t page = 0; page < guest_.memory->ram_pages(); ++page) guest_.WritePage(page, 9);
    ASSERT_TRUE(saver.HoldRest().ok());
    target_.fails = true;
    std::thread writer([&] { guest_.WriteAtRandom(random_, 2000); });
    const auto saved = saver.CopyRest();
    ASSERT_FALSE(saved.ok());
    writer.join();
  }
  guest_.WriteAtRandom(random_, 100);
  EXPECT_FALSE(guest_.tracking);
}

TEST_P(RamSaverTest, ItIsCancelledByItsProgress) {
  guest_.WriteAtRandom(random_, 4000);
  RamSaver saver(*guest_.memory, guest_, target_, RamSaver::Options(),
                 [](uint64_t done, uint64_t total) { return done < total / 2; });
  const auto saved = saver.CopyLive();
  ASSERT_FALSE(saved.ok());
  EXPECT_EQ(saved.error().code(), Code::kCancelled);
}

}  // namespace
}  // namespace kvmbus::vmm
