// SPDX-License-Identifier: Apache-2.0
// Direct I/O: which files get it, calls that take any buffer, and transfers that do not suit it on
// both host engines.
#include "virtdev/disk/engine/direct_io.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <random>

#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/engine/host_engine.h"
#include "virtdev/disk/tools/disk_tools.h"

namespace kvmbus::virtdev {
namespace {

using Bytes = std::vector<uint8_t>;
constexpr uint64_t kFileBytes = 4u << 20;

Bytes RandomBytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  Bytes bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

class DirectIoTest : public testing::Test {
 protected:
  DirectIoTest() {
    char folder[] = "/var/tmp/direct-test-XXXXXX";
    folder_ = ::mkdtemp(folder);
    model_ = RandomBytes(kFileBytes, 1);
    std::ofstream(path(), std::ios::binary)
        .write(reinterpret_cast<const char*>(model_.data()), kFileBytes);
  }
  ~DirectIoTest() override { std::filesystem::remove_all(folder_); }
  std::string path() const { return folder_ + "/d.raw"; }

  /// Null, and the test is skipped, where the file system has no direct I/O.
  std::unique_ptr<BlockFile> OpenDirect() {
    auto file = OpenBlockFile(path(), false).value();
    const auto direct = file->GoDirect(512);
    if (!direct.ok()) return nullptr;
    EXPECT_NE(::fcntl(file->fd(), F_GETFL) & O_DIRECT, 0);
    EXPECT_FALSE(file->alignment().is_none());
    return file;
  }
  Bytes Content() const {
    Bytes bytes(kFileBytes);
    std::ifstream(path(), std::ios::binary).read(reinterpret_cast<char*>(bytes.data()), kFileBytes);
    return bytes;
  }

  std::string folder_;
  Bytes model_;
};

TEST_F(DirectIoTest, CallsTakeAnyBufferAndPlace) {
  auto file = OpenDirect();
  if (file == nullptr) GTEST_SKIP() << "no direct I/O here";
  std::mt19937 random(2);
  for (int i = 0; i < 100; ++i) {
    const size_t size = i % 10 == 0 ? 600'000 + random() % 1000 : 1 + random() % 9000;
    const size_t offset = random() % (kFileBytes - size);
    const Bytes data = RandomBytes(size, static_cast<uint32_t>(i));
    ASSERT_TRUE(file->Write(data, offset).ok());
    std::copy(data.begin(), data.end(), model_.begin() + static_cast<ptrdiff_t>(offset));
    Bytes back(size + 3);
    const size_t from = std::min(offset, kFileBytes - back.size());
    ASSERT_TRUE(file->Read(back, from).ok());
    ASSERT_TRUE(
        std::equal(back.begin(), back.end(), model_.begin() + static_cast<ptrdiff_t>(from)));
  }
  Bytes end(100);
  EXPECT_TRUE(file->Read(end, kFileBytes - 100).ok());
  EXPECT_EQ(file->Read(end, kFileBytes - 99).error().code(), vmm::Code::kOutOfRange);
  ASSERT_TRUE(file->Zero(5000, 70'000, false).ok());
  std::fill_n(model_.begin() + 5000, 70'000, uint8_t{0});
  file.reset();
  EXPECT_EQ(Content(), model_);
}

TEST_F(DirectIoTest, AWriteGoesBeyondTheEnd) {
  auto file = OpenDirect();
  if (file == nullptr) GTEST_SKIP() << "no direct I/O here";
  const Bytes data = RandomBytes(10'240, 3);
  ASSERT_TRUE(file->Write(data, kFileBytes - 512).ok());
  EXPECT_EQ(file->Size().value(), kFileBytes - 512 + data.size());
  Bytes back(data.size());
  ASSERT_TRUE(file->Read(back, kFileBytes - 512).ok());
  EXPECT_EQ(back, data);
}

TEST_F(DirectIoTest, SectorsSmallerThanTheHostsStayInThePageCache) {
  auto file = OpenDirect();
  if (file == nullptr) GTEST_SKIP() << "no direct I/O here";
  const uint32_t needed = file->alignment().bytes;
  file.reset();
  file = OpenBlockFile(path(), false).value();
  const auto refused = file->GoDirect(needed / 2);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), vmm::Code::kUnimplemented);
  EXPECT_NE(refused.error().ToString().find("--logical-sector"), std::string::npos);
  EXPECT_EQ(::fcntl(file->fd(), F_GETFL) & O_DIRECT, 0) << "nothing is changed";
  EXPECT_TRUE(file->alignment().is_none());
}

// A fixed VHD is direct, with its footer behind the disk; a dynamic one is not.
TEST_F(DirectIoTest, AFixedVhdIsDirect) {
  if (OpenDirect() == nullptr) GTEST_SKIP() << "no direct I/O here";
  for (const bool fixed : {true, false}) {
    const std::string vhd = folder_ + (fixed ? "/fixed.vhd" : "/dynamic.vhd");
    CreateDiskOptions options;
    options.format = "vhd";
    options.size_bytes = 4u << 20;
    options.fixed = fixed;
    ASSERT_TRUE(CreateDisk(vhd, options).ok());
    auto chain = OpenChain(vhd, false).value();
    ApplyCaching(chain->top(), DiskCaching::kDirect, vhd);
    EXPECT_EQ(chain->top().file().alignment().is_none(), !fixed);
    EXPECT_TRUE(chain->Close().ok());
  }
}

TEST_F(DirectIoTest, TheParentOfADisksImageStaysInThePageCache) {
  if (OpenDirect() == nullptr) GTEST_SKIP() << "no direct I/O here";
  CreateDiskOptions options;
  options.size_bytes = 4u << 20;
  ASSERT_TRUE(CreateDisk(folder_ + "/base.vhdx", options).ok());
  CreateDiskOptions child;
  child.parent = folder_ + "/base.vhdx";
  ASSERT_TRUE(CreateDisk(folder_ + "/top.avhdx", child).ok());
  auto chain = OpenChain(folder_ + "/top.avhdx", false).value();
  ApplyCaching(chain->top(), DiskCaching::kBuffered, "top");
  EXPECT_TRUE(chain->top().file().alignment().is_none()) << "as it was asked for";
  ApplyCaching(chain->top(), DiskCaching::kDirect, "top");
  EXPECT_FALSE(chain->layers()[0]->file().alignment().is_none());
  EXPECT_TRUE(chain->layers()[1]->file().alignment().is_none());
  EXPECT_TRUE(chain->Close().ok());
}

/// Counts what is done; a transfer's owner is the test's.
class Counter final : public HostCompletion {
 public:
  void OnTransferDone(HostTransfer&, int error) override {
    ++done;
    if (error != 0) last_error = error;
  }
  int done = 0;
  int last_error = 0;
};

class DirectEngineTest : public DirectIoTest, public testing::WithParamInterface<bool> {
 protected:
  DirectEngineTest() {
    loop_ = vmm::Loop::Create().value();
    engine_ = GetParam() ? MakeThreadEngine() : MakeUringEngine();
    if (engine_) queue_ = engine_->OpenQueue(*loop_).value();
  }

  std::unique_ptr<vmm::Loop> loop_;
  std::unique_ptr<HostEngine> engine_;
  std::unique_ptr<HostQueue> queue_;
  Counter counter_;
};

// More at once than there are buffers, pieces of odd sizes and addresses, some larger than a
// buffer; each in its own place of the file, so that the order is free.
TEST_P(DirectEngineTest, TransfersTakeAnyMemory) {
  auto file = OpenDirect();
  if (file == nullptr || queue_ == nullptr) GTEST_SKIP() << "no direct I/O, or no such engine";
  constexpr size_t kTransfers = 60, kSlot = kFileBytes / kTransfers / 512 * 512;
  std::mt19937 random(4);
  std::vector<Bytes> memory;
  std::vector<ptrdiff_t> skews;
  std::vector<HostTransfer> transfers(kTransfers);
  for (const bool write : {true, false}) {
    memory.clear();
    skews.clear();
    counter_ = {};
    for (size_t i = 0; i < kTransfers; ++i) {
      // The first has ten slots to itself.
      const size_t size = i == 0 ? 10 * kSlot : i < 10 ? 0 : (1 + random() % (kSlot / 512)) * 512;
      const size_t skew = i % 3 == 0 ? 0 : random() % 4096;
      memory.push_back(RandomBytes(size + skew, random()));
      skews.push_back(static_cast<ptrdiff_t>(skew));
      HostTransfer& transfer = transfers[i];
      transfer = {};
      transfer.file = file.get();
      transfer.write = write;
      transfer.offset = i * kSlot;
      transfer.completion = &counter_;
      uint8_t* at = memory.back().data() + skew;
      for (size_t left = size; left != 0;) {
        const size_t piece = std::min<size_t>(left, 1 + random() % 20'000);
        transfer.iov.push_back({at, piece});
        at += piece;
        left -= piece;
      }
      const uint8_t* data = memory.back().data() + skew;
      if (write) std::copy_n(data, size, model_.begin() + static_cast<ptrdiff_t>(i * kSlot));
      if (size != 0) queue_->Submit(transfer);
    }
    queue_->Kick();
    queue_->Drain();
    EXPECT_EQ(counter_.done, static_cast<int>(kTransfers) - 9);
    EXPECT_EQ(counter_.last_error, 0);
    for (size_t i = 0; i < kTransfers; ++i)
      ASSERT_TRUE(std::equal(memory[i].begin() + skews[i], memory[i].end(),
                             model_.begin() + static_cast<ptrdiff_t>(i * kSlot)));
  }
  queue_.reset();
  file.reset();
  EXPECT_EQ(Content(), model_);
}

INSTANTIATE_TEST_SUITE_P(Engines, DirectEngineTest, testing::Bool());

}  // namespace
}  // namespace kvmbus::virtdev
