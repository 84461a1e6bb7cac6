// SPDX-License-Identifier: Apache-2.0
// What a request costs in the disk layer, by format, host engine, depth and size; on files in the
// page cache, below $TMPDIR or /var/tmp. And what the mapping costs alone.
#include <benchmark/benchmark.h>
#include <stdlib.h>

#include <cstdlib>
#include <filesystem>

#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/tools/disk_tools.h"

namespace kvmbus::virtdev {
namespace {

constexpr uint64_t kDiskBytes = 64u << 20;
constexpr uint64_t kScatter = 7919 * 4096;    // visits every 4 KiB of the disk
constexpr uint64_t kFreshBlock = 1u << 20;    // of the disks on which each write allocates
constexpr uint64_t kFreshBytes = 128u << 20;  // sparse

class Folder {
 public:
  Folder() {
    const char* base = std::getenv("TMPDIR");
    path_ = std::string(base != nullptr && *base != 0 ? base : "/var/tmp") + "/disk-bench-XXXXXX";
    KVMBUS_ASSERT(::mkdtemp(path_.data()) != nullptr);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

const std::string& FolderPath() {
  static const Folder folder;
  return folder.path();
}

void MakeDisk(const std::string& path, const std::string& format, uint64_t bytes,
              uint32_t block_bytes) {
  std::filesystem::remove(path);
  CreateDiskOptions options;
  options.format = format;
  options.size_bytes = bytes;
  options.block_bytes = block_bytes;
  const auto created = CreateDisk(path, options);
  KVMBUS_ASSERT(created.ok());
}

/// Requests of one size, `depth` at a time, each at its own place of one buffer.
class Batch final : public DiskCompletion {
 public:
  Batch(DiskIo& disk, size_t depth, size_t bytes)
      : loop_(vmm::Loop::Create().value()),
        queue_(disk.OpenQueue(*loop_).value()),
        disk_bytes_(disk.info().size_bytes),
        buffer_(static_cast<uint8_t*>(std::aligned_alloc(4096, depth * bytes)), &std::free),
        pieces_(depth),
        requests_(depth) {
    std::fill_n(buffer_.get(), depth * bytes, uint8_t{0x5a});
    for (size_t i = 0; i < depth; ++i) {
      pieces_[i] = {buffer_.get() + i * bytes, bytes};
      requests_[i].length = bytes;
      requests_[i].iov = {&pieces_[i], 1};
      requests_[i].completion = this;
    }
  }
  ~Batch() override { queue_->Drain(); }

  /// Waits in the loop, as a channel does. False if one failed.
  bool Do(DiskRequest::Op op, uint64_t step) {
    for (DiskRequest& request : requests_) {
      request.op = op;
      request.offset = offset_;
      offset_ = (offset_ + step) % disk_bytes_;
      if (offset_ + request.length > disk_bytes_) offset_ = 0;
      queue_->Submit(request);
    }
    return Wait(requests_.size());
  }
  bool Flush() {
    flush_.op = DiskRequest::Op::kFlush;
    flush_.completion = this;
    queue_->Submit(flush_);
    return Wait(1);
  }
  void OnDiskComplete(DiskRequest& request) override {
    ++done_;
    failed_ = failed_ || request.error != 0;
  }

 private:
  bool Wait(size_t count) {
    queue_->Kick();
    while (done_ < count) loop_->RunOnce(-1);
    done_ = 0;
    return !failed_;
  }

  std::unique_ptr<vmm::Loop> loop_;
  std::unique_ptr<DiskQueue> queue_;
  const uint64_t disk_bytes_;
  std::unique_ptr<uint8_t, decltype(&std::free)> buffer_;
  std::vector<iovec> pieces_;
  std::vector<DiskRequest> requests_;
  DiskRequest flush_;
  uint64_t offset_ = 0;
  size_t done_ = 0;
  bool failed_ = false;
};

/// A disk all of whose blocks are allocated.
const std::string& FullDisk(bool vhdx) {
  static std::string paths[2];
  std::string& path = paths[vhdx ? 1 : 0];
  if (path.empty()) {
    path = FolderPath() + (vhdx ? "/full.vhdx" : "/full.raw");
    MakeDisk(path, vhdx ? "vhdx" : "raw", kDiskBytes, 2u << 20);
    const auto disk = OpenDisk(path, {false, false, DiskCaching::kBuffered}).value();
    {
      Batch batch(*disk, 1, 1u << 20);
      for (uint64_t i = 0; i < kDiskBytes >> 20; ++i)
        KVMBUS_ASSERT(batch.Do(DiskRequest::Op::kWrite, 1u << 20));
    }
    KVMBUS_ASSERT(disk->Close().ok());
  }
  return path;
}

void Report(benchmark::State& state, int64_t depth, int64_t bytes) {
  state.SetItemsProcessed(state.iterations() * depth);
  state.SetBytesProcessed(state.iterations() * depth * bytes);
}

void Transfer(benchmark::State& state, DiskRequest::Op op) {
  const auto depth = static_cast<size_t>(state.range(2));
  const auto bytes = static_cast<size_t>(state.range(3)) << 10;
  const auto disk =
      OpenDisk(FullDisk(state.range(0) != 0), {false, state.range(1) != 0, DiskCaching::kBuffered})
          .value();
  uint64_t requests = 0;
  {
    Batch batch(*disk, depth, bytes);
    for (auto _ : state) {
      if (!batch.Do(op, kScatter)) return state.SkipWithError("a request failed");
    }
    disk->VisitCounters([&](std::string_view name, const vmm::Counter& counter) {
      if (name == (op == DiskRequest::Op::kRead ? "disk_reads" : "disk_writes"))
        requests = counter.value();
    });
  }
  if (requests != static_cast<uint64_t>(state.iterations()) * depth)
    return state.SkipWithError("requests are missing");
  if (!disk->Close().ok()) return state.SkipWithError("the image does not close");
  Report(state, state.range(2), state.range(3) << 10);
}
void BM_Read(benchmark::State& state) { Transfer(state, DiskRequest::Op::kRead); }
void BM_Write(benchmark::State& state) { Transfer(state, DiskRequest::Op::kWrite); }

void FormatsAndEngines(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"vhdx", "threads", "depth", "KiB"})
      ->ArgsProduct({{0, 1}, {0, 1}, {1, 32}, {4, 64, 1024}})
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}
BENCHMARK(BM_Read)->Apply(FormatsAndEngines);
BENCHMARK(BM_Write)->Apply(FormatsAndEngines);

/// A 4 KiB write and the flush that makes it durable.
void BM_WriteAndFlush(benchmark::State& state) {
  const auto disk =
      OpenDisk(FullDisk(state.range(0) != 0), {false, false, DiskCaching::kBuffered}).value();
  {
    Batch batch(*disk, 1, 4096);
    for (auto _ : state) {
      if (!batch.Do(DiskRequest::Op::kWrite, kScatter) || !batch.Flush())
        return state.SkipWithError("a request failed");
    }
  }
  if (!disk->Close().ok()) return state.SkipWithError("the image does not close");
  Report(state, 1, 4096);
}
BENCHMARK(BM_WriteAndFlush)
    ->ArgName("vhdx")
    ->Arg(0)
    ->Arg(1)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

/// Every write allocates a block of a new image. An item is a write; a flush follows the last one
/// if the second argument says so. Arguments: depth, flush.
void BM_AllocatingWrite(benchmark::State& state) {
  const auto depth = static_cast<size_t>(state.range(0));
  const std::string path = FolderPath() + "/fresh.vhdx";
  uint64_t blocks = 0;
  for (auto _ : state) {
    state.PauseTiming();
    MakeDisk(path, "vhdx", kFreshBytes, kFreshBlock);
    auto disk = OpenDisk(path, {false, false, DiskCaching::kBuffered}).value();
    auto batch = std::make_unique<Batch>(*disk, depth, 4096);
    bool ok = true;
    state.ResumeTiming();
    for (uint64_t i = 0; i < kFreshBytes / kFreshBlock; i += depth)
      ok = batch->Do(DiskRequest::Op::kWrite, kFreshBlock) && ok;
    if (state.range(1) != 0) ok = batch->Flush() && ok;
    state.PauseTiming();
    batch.reset();
    ok = disk->Close().ok() && ok;
    disk.reset();
    blocks = DescribeDisk(path).value().allocated_blocks;
    if (!ok || blocks != kFreshBytes / kFreshBlock)
      return state.SkipWithError("not every write allocated a block");
    state.ResumeTiming();
  }
  Report(state, kFreshBytes / kFreshBlock, 4096);
}
BENCHMARK(BM_AllocatingWrite)
    ->ArgNames({"depth", "flush"})
    ->ArgsProduct({{1, 32}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

/// The processor's part alone. Arguments: write, KiB.
void BM_Map(benchmark::State& state) {
  const auto chain = OpenChain(FullDisk(true), false).value();
  const uint64_t bytes = static_cast<uint64_t>(state.range(1)) << 10;
  KVMBUS_ASSERT(chain->top().PrepareToWrite().ok());
  uint64_t offset = 0;
  for (auto _ : state) {
    const auto extents = state.range(0) != 0 ? chain->top().MapForWrite(offset, bytes).value()
                                             : chain->MapForRead(offset, bytes);
    uint64_t mapped = 0;
    for (const ImageExtent& extent : extents)
      mapped += extent.kind == ImageExtent::Kind::kData ? extent.length : 0;
    if (mapped != bytes) return state.SkipWithError("the mapping has holes");
    offset = (offset + kScatter) % kDiskBytes;
    if (offset + bytes > kDiskBytes) offset = 0;
  }
  state.SetItemsProcessed(state.iterations());
  if (!chain->Close().ok()) state.SkipWithError("the image does not close");
}
BENCHMARK(BM_Map)->ArgNames({"write", "KiB"})->ArgsProduct({{0, 1}, {4, 64, 1024}});

}  // namespace
}  // namespace kvmbus::virtdev
