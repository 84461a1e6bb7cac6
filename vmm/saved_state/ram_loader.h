// SPDX-License-Identifier: Apache-2.0
/// \file
/// RamLoader: gives a machine its saved memory while it runs already: a page comes when somebody
/// touches it, the others one after the other in the background, once it runs.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "vmm/memory/userfault.h"
#include "vmm/saved_state/ram_file.h"

namespace kvmbus::vmm {

/// Home: the main thread. The memory is fresh when it starts: nothing of it was touched.
class RamLoader {
 public:
  struct Options {
    unsigned prefetch_threads = 2;
    /// False, or if the kernel does not let us: all memory is read before the start.
    bool lazy = true;
  };
  /// Called once, on a thread of the loader, when the file cannot be read. Whoever touches a page
  /// that is missing waits for ever, so the process must end.
  using Failed = std::function<void(const Error&)>;

  static Result<std::unique_ptr<RamLoader>> Start(GuestMemory& memory, RamSource source,
                                                  const Options& options, Failed failed);
  /// To be destroyed when the machine is off: pages that are still missing never come.
  ~RamLoader();

  /// Begins to read what nobody has touched; until then nothing stands in the way of the restore
  /// itself. More than once is harmless. Any thread.
  void Prefetch();
  /// Waits until all memory is there, prefetched if need be: nothing is left to be done. Any
  /// thread.
  void Finish();

 private:
  RamLoader(GuestMemory& memory, RamSource source, const Options& options, Failed failed);

  Result<void> Arm();
  void StartPrefetching();
  uint64_t unit_bytes() const { return unit_blocks_ * kRamBlockBytes; }
  void PrefetchUnits();
  void ServeFaults();
  Result<void> Serve(uint64_t address);
  Result<void> ReadBlock(const RamPlace& place, std::span<uint8_t> block) const;
  Result<void> LoadUnit(uint64_t unit, std::vector<uint8_t>* buffer);
  Result<void> FillUnit(uint64_t unit, std::vector<uint8_t>* buffer);
  void Fail(const Error& error);
  void Disarm();

  GuestMemory& memory_;
  const RamSource source_;
  const Options options_;
  const Failed failed_;
  const uint64_t unit_blocks_;          ///< BlocksTogether
  std::optional<Userfault> userfault_;  ///< none: eager
  Fd stop_;
  std::atomic<uint64_t> next_unit_{0};
  std::atomic<unsigned> prefetching_{0};
  std::atomic<bool> has_failed_{false};
  std::atomic<bool> abandoned_{false};
  std::mutex threads_mutex_;  // guards the next three, once the loader is armed
  std::vector<std::thread> prefetch_threads_;
  bool prefetch_began_ = false;
  std::thread fault_thread_;
};

}  // namespace kvmbus::vmm
