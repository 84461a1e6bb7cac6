// SPDX-License-Identifier: Apache-2.0
// Drives DiskIo with the pattern of 'qemu-img bench': requests of one size, each a step after the
// last one, all of them with the same memory, a number of them under way; a flush after every so
// many, for which all before it end. Each completion is answered at once by the next request, which
// goes to the host at once, so that its disk has something to do while the next completion is
// looked at. With --batch it is as our SCSI device does it: what completes together is answered
// together. Prints one line of JSON.
#include <fmt/format.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>

#include "virtdev/disk/tools/disk_tools.h"

namespace kvmbus::virtdev {
namespace {

struct Options {
  std::string path;
  uint64_t create_bytes = 0;
  uint64_t count = 1000, bytes = 4096, step = 4096, depth = 1, flush_interval = 0;
  bool write = false, threads = false, buffered = false, batch = false;
};

class Load final : public DiskCompletion {
 public:
  Load(const Options& options, uint64_t disk_bytes, DiskQueue& queue, vmm::Loop& loop)
      : options_(options),
        disk_bytes_(disk_bytes),
        queue_(queue),
        loop_(loop),
        buffer_(static_cast<uint8_t*>(std::aligned_alloc(4096, options.bytes))) {
    std::fill_n(buffer_.get(), options.bytes, uint8_t{0x5a});
    slots_.resize(options.depth);
    for (Slot& slot : slots_) {
      slot.piece = {buffer_.get(), options.bytes};
      slot.request.iov = {&slot.piece, 1};
      slot.request.completion = this;
      idle_.push_back(&slot);
    }
    flush_.op = DiskRequest::Op::kFlush;
    flush_.completion = this;
    latencies_.reserve(options.count);
  }

  /// 0, or the first errno.
  int Run() {
    while (completed_ != options_.count || flushing_) {
      const uint64_t before = answers_;
      SubmitAll();
      queue_.Kick();
      if (answers_ == before) loop_.RunOnce(-1);
      if (error_ != 0) break;
    }
    queue_.Drain();
    return error_;
  }

  void OnDiskComplete(DiskRequest& request) override {
    ++answers_;
    if (request.error != 0) error_ = request.error;
    if (&request == &flush_) {
      flushing_ = false;
      ++flushes_;
      return;
    }
    Slot& slot = *reinterpret_cast<Slot*>(&request);
    latencies_.push_back(loop_.clock().MonotonicNs() - slot.started);
    idle_.push_back(&slot);
    ++completed_;
    if (options_.flush_interval != 0 && completed_ % options_.flush_interval == 0) Flush();
    if (options_.batch) return;
    SubmitAll();
    queue_.Kick();
  }

  uint64_t flushes() const { return flushes_; }
  double LatencyUs(double quantile) {
    const auto at = static_cast<ptrdiff_t>(quantile * static_cast<double>(latencies_.size() - 1));
    std::nth_element(latencies_.begin(), latencies_.begin() + at, latencies_.end());
    return static_cast<double>(latencies_[static_cast<size_t>(at)]) / 1000;
  }

 private:
  struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
  };
  struct Slot {
    DiskRequest request;  // first: OnDiskComplete finds the slot by it
    iovec piece{};
    uint64_t started = 0;
  };

  void SubmitAll() {
    while (!flushing_ && !idle_.empty() && submitted_ != options_.count) {
      // The flush that is due next waits for all before it.
      const uint64_t interval = options_.flush_interval;
      if (interval != 0 && submitted_ == (completed_ / interval + 1) * interval) return;
      Slot& slot = *idle_.back();
      idle_.pop_back();
      ++submitted_;
      slot.request.op = options_.write ? DiskRequest::Op::kWrite : DiskRequest::Op::kRead;
      slot.request.offset = offset_;
      slot.request.length = options_.bytes;
      slot.started = loop_.clock().MonotonicNs();
      offset_ = (offset_ + options_.step) % disk_bytes_;
      if (offset_ + options_.bytes > disk_bytes_) offset_ = 0;
      queue_.Submit(slot.request);
    }
  }

  void Flush() {
    flushing_ = true;
    queue_.Submit(flush_);
  }

  const Options& options_;
  const uint64_t disk_bytes_;
  DiskQueue& queue_;
  vmm::Loop& loop_;
  const std::unique_ptr<uint8_t, Free> buffer_;
  std::vector<Slot> slots_;
  std::vector<Slot*> idle_;
  DiskRequest flush_;
  bool flushing_ = false;
  int error_ = 0;
  uint64_t submitted_ = 0, completed_ = 0, answers_ = 0, flushes_ = 0, offset_ = 0;
  std::vector<uint64_t> latencies_;
};

double CpuSeconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

vmm::Result<void> Create(const Options& options) {
  CreateDiskOptions create;
  create.format = options.path.ends_with(".vhdx") ? "vhdx" : "raw";
  create.size_bytes = options.create_bytes;
  return CreateDisk(options.path, create);
}

vmm::Result<void> Measure(const Options& options) {
  auto loop = TRY(vmm::Loop::Create());
  DiskOpenOptions open;
  open.force_threads = options.threads;
  open.caching = options.buffered ? DiskCaching::kBuffered : DiskCaching::kDirect;
  auto disk = TRY(OpenDisk(options.path, open));
  const uint64_t disk_bytes = disk->info().size_bytes;
  if (options.bytes > disk_bytes)
    return vmm::MakeError(vmm::Code::kInvalidArgument,
                          "requests of {} bytes on a disk of {}: give a smaller --bytes",
                          options.bytes, disk_bytes);
  auto queue = TRY(disk->OpenQueue(*loop));
  Load load(options, disk_bytes, *queue, *loop);
  const double cpu = CpuSeconds();
  const uint64_t start = loop->clock().MonotonicNs();
  const int error = load.Run();
  const double seconds = static_cast<double>(loop->clock().MonotonicNs() - start) / 1e9;
  const double cpu_seconds = CpuSeconds() - cpu;
  queue.reset();
  TRY_VOID(disk->Close());
  if (error != 0) return vmm::Error::FromErrno(error, "a request failed");
  fmt::print(
      "{{\"format\": \"{}\", \"requests\": {}, \"bytes\": {}, \"flushes\": {}, \"seconds\": "
      "{:.6f}, "
      "\"cpu_seconds\": {:.6f}, \"p50_us\": {:.1f}, \"p99_us\": {:.1f}}}\n",
      disk->format(), options.count, options.count * options.bytes, load.flushes(), seconds,
      cpu_seconds, load.LatencyUs(0.5), load.LatencyUs(0.99));
  return {};
}

}  // namespace
}  // namespace kvmbus::virtdev

int main(int argc, char** argv) {
  using namespace kvmbus::virtdev;
  Options options;
  CLI::App app("Loads a disk image through kvmbus's DiskIo and prints how long it took, as JSON");
  app.add_option("image", options.path, "raw, or VHDX if named .vhdx")->required();
  app.add_option("--create", options.create_bytes, "make an empty image of so many bytes, no more");
  app.add_option("--count", options.count, "requests")->check(CLI::PositiveNumber);
  app.add_option("--bytes", options.bytes, "of a request")->check(CLI::PositiveNumber);
  app.add_option("--step", options.step, "bytes from one request to the next");
  app.add_option("--depth", options.depth, "requests under way")->check(CLI::Range(1, 1024));
  app.add_option("--flush-interval", options.flush_interval, "requests between flushes, 0: none");
  app.add_flag("--write", options.write);
  app.add_flag("--threads", options.threads, "without io_uring");
  app.add_flag("--batch", options.batch, "answer what completes together with one batch");
  app.add_flag("--buffered", options.buffered, "through the page cache");
  CLI11_PARSE(app, argc, argv);
  const auto done = options.create_bytes != 0 ? Create(options) : Measure(options);
  if (done.ok()) return 0;
  fmt::print(stderr, "kvmbus-disk-load: {}\n", done.error().ToString());
  return 1;
}
