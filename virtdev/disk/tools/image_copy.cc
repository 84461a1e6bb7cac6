// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/tools/image_copy.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <thread>

#include "virtdev/disk/tools/image_io.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::Result;

constexpr uint64_t kPieceBytes = 1u << 20;
/// As small as a hole is worth a write of its own.
constexpr uint64_t kUnitBytes = 64u << 10;
/// The host's disk is kept busy while others look for zeroes.
constexpr unsigned kThreads = 4;

/// The threads take the next piece each, until there is none or one of them has failed.
class Copy {
 public:
  Copy(Chain& from, Image& to) : from_(from), to_(to), total_(from.info().size_bytes) {}

  Result<void> Run(const Progress& progress) {
    std::vector<std::thread> helpers;
    for (unsigned i = 1; i < kThreads; ++i) helpers.emplace_back([this] { Work(nullptr); });
    Work(progress);
    for (std::thread& helper : helpers) helper.join();
    if (error_) return std::move(*error_);
    if (progress && !progress(total_, total_)) return Error(Code::kCancelled, "cancelled");
    return {};
  }

 private:
  void Work(const Progress& progress) {
    std::vector<uint8_t> buffer(std::min(kPieceBytes, total_));
    while (!stop_.load()) {
      const uint64_t at = next_.fetch_add(kPieceBytes);
      if (at >= total_) return;
      const auto piece = std::span(buffer).first(std::min(kPieceBytes, total_ - at));
      auto copied = CopyPiece(at, piece);
      if (!copied.ok()) return Stop(std::move(copied.error()));
      const uint64_t done = done_.fetch_add(piece.size()) + piece.size();
      if (progress && !progress(done, total_)) return Stop(Error(Code::kCancelled, "cancelled"));
    }
  }

  /// What is zero within it stays a hole, too.
  Result<void> CopyPiece(uint64_t at, std::span<uint8_t> piece) {
    if (!TRY(ReadChain(from_, at, piece))) return {};
    for (uint64_t begin = 0; begin < piece.size();) {
      uint64_t end = begin;
      while (end < piece.size() && !IsZero(UnitAt(piece, end))) end += kUnitBytes;
      end = std::min<uint64_t>(end, piece.size());
      if (end != begin)
        TRY_VOID(WriteImage(to_, at + begin, piece.subspan(begin, end - begin)));
      else
        end += kUnitBytes;
      begin = end;
    }
    return {};
  }
  static std::span<const uint8_t> UnitAt(std::span<const uint8_t> piece, uint64_t at) {
    return piece.subspan(at, std::min<uint64_t>(kUnitBytes, piece.size() - at));
  }

  void Stop(Error error) {
    std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);  // the first one counts
    stop_.store(true);
  }

  Chain& from_;
  Image& to_;
  const uint64_t total_;
  std::atomic<uint64_t> next_{0}, done_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::optional<Error> error_;  // under mutex_
};

}  // namespace

Result<void> CopyDisk(Chain& from, Image& to, const Progress& progress) {
  TRY_VOID(Copy(from, to).Run(progress));
  return to.Close();
}

}  // namespace kvmbus::virtdev
