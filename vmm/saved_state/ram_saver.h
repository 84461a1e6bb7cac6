// SPDX-License-Identifier: Apache-2.0
/// \file
/// RamSaver: writes the memory of a machine to a file as it is at one instant, and stops the
/// machine for a moment alone.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "vmm/hypervisor/dirty_tracker.h"
#include "vmm/memory/userfault.h"
#include "vmm/saved_state/ram_file.h"

namespace kvmbus::vmm {

/// CopyLive while the guest runs, HoldRest while it is stopped: that is the instant; CopyRest
/// afterwards, when the guest may run again (with `copy_on_write`) or not.
///
/// The live copy leaves what the guest wrote meanwhile. If that is little, HoldRest writes it; if
/// not, it protects these pages, and the guest waits where it wants to write one until the block
/// that has it (the huge page, if that is more) is in the file. So the stop is short whatever the
/// size of the memory and however much the guest writes.
///
/// With `compress` blocks are compressed. One of them that the guest changes is written anew, all
/// of it: by HoldRest, and while the guest waits for it, as it is, so that neither takes longer.
class RamSaver {
 public:
  struct Options {
    unsigned threads = 2;
    bool copy_on_write = true;
    bool compress = false;  ///< not the blocks that somebody waits for
  };
  /// Any thread; bytes of guest memory. False: give up (kCancelled).
  using Progress = std::function<bool(uint64_t done, uint64_t total)>;

  RamSaver(GuestMemory& memory, DirtyTracker& tracker, RamTarget& target, const Options& options,
           Progress progress);
  /// The guest runs on as if nothing had been.
  ~RamSaver();

  Result<void> CopyLive();
  Result<void> HoldRest();
  Result<void> CopyRest();

  /// Bytes of guest memory; what the guest changed meanwhile counts as often as it was written.
  uint64_t bytes_written() const { return bytes_written_.load(); }

 private:
  enum Claim : uint8_t { kFree, kTaken, kSaved };

  uint64_t blocks() const { return memory_.ram_bytes() / kRamBlockBytes; }
  uint64_t unit_pages() const { return unit_blocks_ * kRamBlockPages; }
  uint64_t unit_bytes() const { return unit_blocks_ * kRamBlockBytes; }
  Result<void> ForEachBlock(const std::function<Result<void>(uint64_t block)>& work);
  void FindBacked();
  Result<void> SaveBacked(uint64_t block, bool somebody_waits);
  Result<void> SaveCompressed(uint64_t block);
  Result<void> SavePages(uint64_t block, bool somebody_waits);
  Result<void> SaveMapped(uint64_t block, const PageSet& mapped);
  Result<void> WriteUnlessZero(uint64_t block, const PageSet::Run& pages, bool somebody_waits);
  bool ReadBlock(uint64_t block, std::vector<uint8_t>* content);
  uint64_t PagesToWrite(std::span<const uint64_t> rest) const;
  Result<void> TakeDirty(bool last);
  Result<void> ProtectRest();
  Result<void> SaveClaimed(uint64_t unit, bool somebody_waits);
  Result<void> Unprotect(uint64_t unit);
  void ServeFaults();
  void EndFaults();
  bool Report(uint64_t done);

  GuestMemory& memory_;
  DirtyTracker& tracker_;
  RamTarget& target_;
  const Options options_;
  const Progress progress_;
  const uint64_t unit_blocks_;  ///< BlocksTogether
  PageSet backed_;  ///< the host has them; a look at another one would make it have that too
  PageSet rest_;    ///< changed since they were copied
  bool tracking_ = false;
  std::atomic<uint64_t> bytes_written_{0};

  std::optional<Userfault> userfault_;        ///< while pages are protected
  std::vector<std::atomic<uint8_t>> claims_;  ///< of units
  Fd stop_;
  std::thread fault_thread_;
  std::atomic<bool> fault_failed_{false};
};

}  // namespace kvmbus::vmm
