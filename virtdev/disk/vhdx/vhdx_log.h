// SPDX-License-Identifier: Apache-2.0
/// \file
/// Reading the VHDX log: what a crash left to be done. Reference: [MS-VHDX] section 2.3.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "virtdev/disk/block_file.h"
#include "virtdev/disk/vhdx/vhdx_header.h"

namespace kvmbus::virtdev::vhdx {

/// What a replay would write: a page of data, or a run of zeroes.
struct LogWrite {
  uint64_t file_offset = 0;
  uint64_t length = 0;
  std::vector<uint8_t> page;  ///< 4096 bytes, or empty for zeroes
};

struct LogReplay {
  /// In order. kMaxBytes of memory at most: a log may have a gigabyte, and nobody's has so much
  /// that was not applied.
  std::vector<LogWrite> writes;
  static constexpr uint64_t kMaxBytes = 64 * kMiB;
  uint64_t last_file_offset = 0;  ///< the file must be at least this long
};

/// Finds the active sequence of the log that `header` names (its log GUID is not zero). kDataLoss
/// if there is none, or if the file was cut off since.
vmm::Result<LogReplay> ReadLog(BlockFile& file, const Header& header, uint64_t file_bytes);

/// Writes what the log says into the file and marks the log empty. A crash on the way repeats it.
vmm::Result<void> ReplayInPlace(BlockFile& file, ActiveHeader* active, const LogReplay& replay);

/// The file as it would be after the replay; nothing is written. For a read-only open.
std::unique_ptr<BlockFile> ReplayInMemory(std::unique_ptr<BlockFile> file, const LogReplay& replay);

constexpr uint32_t kLogDescriptorBytes = 32;
/// The sectors of an entry before its data.
constexpr uint64_t LogHeadBytes(uint64_t descriptors) {
  return (sizeof(LogEntryHeader) + descriptors * kLogDescriptorBytes + kLogSector - 1) /
         kLogSector * kLogSector;
}

}  // namespace kvmbus::virtdev::vhdx
