// SPDX-License-Identifier: Apache-2.0
/// \file
/// How much of a disk its partitions take, and how a GPT is fitted to a smaller disk.
#pragma once

#include <cstdint>
#include <string>

#include "virtdev/disk/image.h"

namespace kvmbus::virtdev {

struct PartitionTable {
  enum class Kind { kNone, kMbr, kGpt };
  Kind kind = Kind::kNone;
  /// Of the smallest disk that holds all partitions, and a GPT's second copy behind them. May be
  /// more than the disk has.
  uint64_t smallest_bytes = 0;
  std::string flaw;  ///< kNone: why nobody knows what is in use
};

/// What the disk's own tables say; a guest has written them. Errors: the host's alone.
vmm::Result<PartitionTable> ReadPartitionTable(Image& image);

/// Brings a sound GPT's second copy to the end of a disk of `disk_bytes`, which is smaller than the
/// image's and at least `smallest_bytes`; the first copy leads there. Durable when it returns. A
/// crash at any moment leaves a GPT that is valid on the disk as it is: the new second copy is
/// there before the first names it, and no partition changes. Without it Linux takes the table of a
/// disk that was cut for damaged.
vmm::Result<void> FitGpt(Image& image, uint64_t disk_bytes);

}  // namespace kvmbus::virtdev
