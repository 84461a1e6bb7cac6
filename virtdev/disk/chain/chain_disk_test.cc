// SPDX-License-Identifier: Apache-2.0
// Queues of a disk on real files: requests of many pieces, and requests that completions submit.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <random>

#include "virtdev/disk/tools/disk_tools.h"

namespace kvmbus::virtdev {
namespace {

constexpr uint64_t kDiskBytes = 16u << 20;

class ChainDiskTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/chain-disk-test-XXXXXX";
    folder_ = ::mkdtemp(folder);
    CreateDiskOptions options;
    options.size_bytes = kDiskBytes;
    options.block_bytes = 1u << 20;
    ASSERT_TRUE(CreateDisk(folder_ + "/d.vhdx", options).ok());
    loop_ = vmm::Loop::Create().value();
    disk_ = OpenDisk(folder_ + "/d.vhdx", {false, GetParam()}).value();
    queue_ = disk_->OpenQueue(*loop_).value();
  }
  void TearDown() override {
    queue_.reset();
    EXPECT_TRUE(disk_->Close().ok());
    disk_.reset();
    std::filesystem::remove_all(folder_);
  }

  std::string folder_;
  std::unique_ptr<vmm::Loop> loop_;
  std::unique_ptr<DiskIo> disk_;
  std::unique_ptr<DiskQueue> queue_;
};

/// One request after the other, each submitted by the completion of the last one.
class Relay final : public DiskCompletion {
 public:
  explicit Relay(DiskQueue& queue) : queue_(queue) {}
  void Start(DiskRequest& request, int count) {
    left_ = count;
    queue_.Submit(request);
    queue_.Kick();
  }
  void OnDiskComplete(DiskRequest& request) override {
    deepest_ = std::max(deepest_, ++depth_);
    EXPECT_EQ(request.error, 0);
    if (--left_ != 0) {
      request.offset = (request.offset + request.length) % kDiskBytes;
      queue_.Submit(request);
      queue_.Kick();
    }
    --depth_;
  }
  int left() const { return left_; }
  int deepest() const { return deepest_; }

 private:
  DiskQueue& queue_;
  int left_ = 0, depth_ = 0, deepest_ = 0;
};

TEST_P(ChainDiskTest, CompletionsThatSubmitDoNotNest) {
  std::vector<uint8_t> data(4096, 0x11);
  const iovec piece{data.data(), data.size()};
  for (const DiskRequest::Op op : {DiskRequest::Op::kWrite, DiskRequest::Op::kRead}) {
    Relay relay(*queue_);
    DiskRequest request;
    request.op = op;
    request.length = data.size();
    request.iov = {&piece, 1};
    request.completion = &relay;
    relay.Start(request, 2000);
    while (relay.left() != 0) loop_->RunOnce(10000);
    EXPECT_EQ(relay.deepest(), 1);
  }
}

/// More pieces than a system call takes, of odd sizes, over several blocks; operations are reused.
TEST_P(ChainDiskTest, ManyPiecesArriveInOrder) {
  std::mt19937 random(3);
  std::vector<uint8_t> written(3u << 20), read(written.size());
  const auto pieces_of = [&random](std::vector<uint8_t>& data) {
    std::vector<iovec> pieces;
    for (size_t at = 0; at < data.size();) {
      const size_t size = std::min<size_t>(1 + random() % 1500, data.size() - at);
      pieces.push_back({data.data() + at, size});
      at += size;
    }
    return pieces;
  };
  for (int round = 0; round < 4; ++round) {
    for (uint8_t& byte : written) byte = static_cast<uint8_t>(random());
    for (const bool write : {true, false}) {
      const std::vector<iovec> pieces = pieces_of(write ? written : read);
      ASSERT_GT(pieces.size(), size_t{UIO_MAXIOV});
      Relay done(*queue_);
      DiskRequest request;
      request.op = write ? DiskRequest::Op::kWrite : DiskRequest::Op::kRead;
      request.offset = static_cast<uint64_t>(round) * 512 + (512u << 10);
      request.length = written.size();
      request.iov = pieces;
      request.completion = &done;
      done.Start(request, 1);
      queue_->Drain();
      ASSERT_EQ(done.left(), 0);
    }
    ASSERT_EQ(read, written);
  }
}

INSTANTIATE_TEST_SUITE_P(Engines, ChainDiskTest, testing::Bool(),
                         [](const auto& engine) { return engine.param ? "Threads" : "Uring"; });

}  // namespace
}  // namespace kvmbus::virtdev
