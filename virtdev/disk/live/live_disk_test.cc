// SPDX-License-Identifier: Apache-2.0
// Disks that change while a guest of several threads uses them: holds, and larger disks.
#include <thread>

#include "virtdev/disk/live/live_test_disk.h"

namespace kvmbus::virtdev {
namespace {

using namespace live_test;
using vmm::Result;

/// The host engine, and the suffix of image names.
class LiveDiskTest : public testing::TestWithParam<std::tuple<bool, const char*>> {
 protected:
  bool threads() const { return std::get<0>(GetParam()); }
  std::string path() const { return folder_ / (std::string("d") + std::get<1>(GetParam())); }
  std::unique_ptr<DiskIo> Open(const std::string& path) {
    auto disk = OpenDisk(path, {false, threads(), {}});
    EXPECT_TRUE(disk.ok()) << disk.error().ToString();
    return std::move(disk).value();
  }

  Folder folder_;
};

TEST_P(LiveDiskTest, NothingIsUnderWayInAHold) {
  MakeImage(path());
  auto disk = Open(path());
  Guest guest(*disk);
  guest.Start();
  for (int i = 0; i < 50; ++i) {
    const auto held = disk->live()->Hold([&]() -> Result<void> {
      const bool before = disk->live()->chain().gate().IsEmpty();
      std::this_thread::sleep_for(std::chrono::microseconds(300));
      // Who is turned away is inside for a moment.
      EXPECT_TRUE(before || disk->live()->chain().gate().IsEmpty());
      return {};
    });
    EXPECT_TRUE(held.ok());
    if (i % 5 == 0) guest.AwaitRequests(20);
  }
  guest.AwaitRequests(100);
  guest.Stop();
  guest.ExpectAllRight();
  ASSERT_TRUE(disk->Close().ok());
  disk.reset();
  EXPECT_TRUE(ReadDisk(path()) == guest.Content());
  EXPECT_EQ(Complaints(path()), "");
}

TEST_P(LiveDiskTest, QueuesComeAndGoDuringHolds) {
  MakeImage(path());
  auto disk = Open(path());
  Guest guest(*disk);
  std::atomic<bool> stop{false};
  std::thread holder([&] {
    while (!stop.load()) {
      EXPECT_TRUE(disk->live()->Hold([] { return Result<void>(); }).ok());
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  });
  for (int round = 0; round < 40; ++round) {
    guest.Start();
    guest.AwaitRequests(5);
    guest.Stop();
  }
  stop = true;
  holder.join();
  guest.ExpectAllRight();
  ASSERT_TRUE(disk->Close().ok());
  disk.reset();
  EXPECT_TRUE(ReadDisk(path()) == guest.Content());
}

/// Two queues of one loop, which does not turn while one of them is drained: the other one's
/// requests cannot end, and a hold that waits for them is not in the way.
TEST_P(LiveDiskTest, ADrainDoesNotWaitForAHoldThatWaits) {
  MakeImage(path());
  auto disk = Open(path());
  const auto loop = vmm::Loop::Create().value();
  auto busy = disk->OpenQueue(*loop).value(), drained = disk->OpenQueue(*loop).value();
  struct Done final : DiskCompletion {
    void OnDiskComplete(DiskRequest& request) override {
      EXPECT_EQ(request.error, 0);
      ++count;
    }
    int count = 0;
  } done;
  std::vector<uint8_t> data(4096, 7);
  iovec piece{data.data(), data.size()};
  DiskRequest requests[2];
  for (DiskRequest& request : requests) {
    request.op = DiskRequest::Op::kWrite;
    request.length = data.size();
    request.iov = {&piece, 1};
    request.completion = &done;
  }
  busy->Submit(requests[0]);
  std::atomic<bool> held{false};
  std::thread holder([&] {
    EXPECT_TRUE(disk->live()
                    ->Hold([&] {
                      held = true;
                      return Result<void>();
                    })
                    .ok());
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_FALSE(held.load()) << "a request is under way";
  requests[1].offset = kMiB;
  drained->Submit(requests[1]);
  EXPECT_EQ(done.count, 0);
  drained->Drain();
  EXPECT_EQ(done.count, 1);
  EXPECT_FALSE(held.load());
  busy->Drain();
  holder.join();
  EXPECT_EQ(done.count, 2);
  busy.reset();
  drained.reset();
  EXPECT_TRUE(disk->Close().ok());
}

class LiveResizeTest : public LiveDiskTest {
 protected:
  /// Grows in steps under load; the guest uses each new part at once.
  void Grow(const std::string& path, const std::vector<uint64_t>& sizes) {
    auto disk = Open(path);
    std::atomic<uint64_t> told{0};
    disk->SetResizeListener([&] { told = disk->info().size_bytes; });
    Guest guest(*disk);
    uint64_t strips = kDiskBytes / kStrip;
    guest.SetContent(ReadAll(*disk));
    guest.Start();
    for (const uint64_t size : sizes) {
      guest.AwaitRequests(50);
      const auto grown = ResizeLiveDisk(*disk->live(), size);
      ASSERT_TRUE(grown.ok()) << grown.error().ToString();
      EXPECT_EQ(told.load(), size);
      // A few of them: the test's memory is not that large.
      for (int i = 0; i < 8 && strips < size / kStrip; ++i, ++strips)
        guest.hammer(strips % Guest::kThreads).AddStrip(strips);
    }
    guest.AwaitRequests(200);
    guest.Stop();
    guest.ExpectAllRight();
    disk->SetResizeListener({});
    ASSERT_TRUE(disk->Close().ok());
    disk.reset();
    if (!path.ends_with(".raw")) {
      EXPECT_EQ(Complaints(path), "");
    }
    const auto chain = OpenChain(path, true);
    ASSERT_TRUE(chain.ok()) << chain.error().ToString();
    EXPECT_EQ((*chain)->info().size_bytes, sizes.back());
    const Bytes wanted = guest.Content(strips * kStrip);
    EXPECT_TRUE(Read(**chain, wanted.size()) == wanted);
  }
  static Bytes Read(Chain& chain, uint64_t size) {
    Bytes bytes(size, 0);
    uint64_t done = 0;
    for (const ImageExtent& extent : chain.MapForRead(0, size)) {
      const auto part = std::span(bytes).subspan(done, extent.length);
      if (extent.kind == ImageExtent::Kind::kData) {
        EXPECT_TRUE(extent.file->Read(part, extent.file_offset).ok());
      }
      done += extent.length;
    }
    return bytes;
  }
  static Bytes ReadAll(DiskIo& disk) { return Read(disk.live()->chain(), disk.info().size_bytes); }
  /// Something in a base that shows through.
  void Fill(const std::string& path) {
    auto disk = Open(path);
    Guest guest(*disk, 77);
    guest.Start();
    guest.AwaitRequests(150);
    guest.Stop();
    ASSERT_TRUE(disk->Close().ok());
  }
};

// 600 GiB in blocks of 1 MiB: the BAT leaves its region, which had 1 MiB.
const std::vector<uint64_t> kSizes = {kDiskBytes + 512, kDiskBytes + 3 * kMiB,
                                      kDiskBytes + 9 * kMiB, 600 * 1024 * kMiB, 2048 * 1024 * kMiB};

TEST_P(LiveResizeTest, ADynamicDisk) {
  MakeImage(folder_ / "d.vhdx");
  Grow(folder_ / "d.vhdx", kSizes);
}

TEST_P(LiveResizeTest, ARawDisk) {
  MakeImage(folder_ / "d.raw");
  Grow(folder_ / "d.raw", {kDiskBytes + 512, kDiskBytes + 3 * kMiB, kDiskBytes + 9 * kMiB});
}

TEST_P(LiveResizeTest, TheTopOfAChain) {
  MakeImage(folder_ / "a.vhdx");
  Fill(folder_ / "a.vhdx");
  MakeImage(folder_ / "b.vhdx", folder_ / "a.vhdx");
  Fill(folder_ / "b.vhdx");
  MakeImage(folder_ / "c.vhdx", folder_ / "b.vhdx");
  MakeImage(folder_ / "d.vhdx", folder_ / "c.vhdx");
  Grow(folder_ / "d.vhdx", kSizes);
}

TEST_P(LiveResizeTest, WhatCannotBeIsRefusedAndNothingChanges) {
  MakeImage(folder_ / "d.vhdx");
  auto disk = Open(folder_ / "d.vhdx");
  const uint64_t bad[] = {kMiB, kDiskBytes + 1, uint64_t{65} << 40};
  for (const uint64_t size : bad) EXPECT_FALSE(ResizeLiveDisk(*disk->live(), size).ok());
  EXPECT_EQ(disk->info().size_bytes, kDiskBytes);
  ASSERT_TRUE(disk->Close().ok());
  disk.reset();
  disk = OpenDisk(folder_ / "d.vhdx", {true, threads(), {}}).value();
  EXPECT_EQ(ResizeLiveDisk(*disk->live(), 2 * kDiskBytes).error().code(),
            vmm::Code::kFailedPrecondition);
  ASSERT_TRUE(disk->Close().ok());
}

TEST_P(LiveDiskTest, ADiskThatCannotGrowStaysWhatItIs) {
  if (path().ends_with(".vhdx")) GTEST_SKIP() << "it can";
  MakeImage(path());
  auto disk = Open(path());
  Guest guest(*disk);
  guest.Start();
  EXPECT_EQ(ResizeLiveDisk(*disk->live(), 2 * kDiskBytes).error().code(),
            vmm::Code::kUnimplemented);
  guest.AwaitRequests(30);
  guest.Stop();
  guest.ExpectAllRight();
  EXPECT_EQ(disk->info().size_bytes, kDiskBytes);
  ASSERT_TRUE(disk->Close().ok());
  disk.reset();
  EXPECT_TRUE(ReadDisk(path()) == guest.Content());
  EXPECT_EQ(Complaints(path()), "");
}

const auto kName = [](const auto& test) {
  const auto [threads, suffix] = test.param;
  return std::string(threads ? "Threads" : "Uring") + (suffix + 1);
};
INSTANTIATE_TEST_SUITE_P(Engines, LiveDiskTest,
                         testing::Combine(testing::Bool(), testing::Values(".vhdx", ".vhd")),
                         kName);
INSTANTIATE_TEST_SUITE_P(Engines, LiveResizeTest,
                         testing::Combine(testing::Bool(), testing::Values(".vhdx")), kName);

}  // namespace
}  // namespace kvmbus::virtdev
