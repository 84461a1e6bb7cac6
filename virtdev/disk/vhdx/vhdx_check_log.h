// SPDX-License-Identifier: Apache-2.0
/// \file
/// The strict check's own reading of a VHDX file and of its log; it shares no code with the driver.
#pragma once

#include <array>
#include <vector>

#include "virtdev/disk/block_file.h"
#include "virtdev/disk/vhdx/vhdx_format.h"

/// For loops over many bytes, which a fuzzer would count one by one.
#ifdef __clang__
#define KVMBUS_NO_COVERAGE __attribute__((no_sanitize("coverage")))
#else
#define KVMBUS_NO_COVERAGE
#endif

namespace kvmbus::virtdev::check {

/// Bytewise CRC-32C of a structure, its checksum field (byte 4) taken as zero; on purpose another
/// one than the driver's.
uint32_t SlowChecksum(std::span<const uint8_t> bytes);

/// The file's bytes as they would be after a replay. What cannot be read is zero, and remembered.
class View {
 public:
  View(BlockFile& file, uint64_t size) : file_(file), file_size_(size), size_(size) {}
  uint64_t file_size() const { return file_size_; }
  uint64_t size() const { return size_; }
  bool failed() const { return failed_; }
  std::vector<uint8_t> Get(uint64_t offset, uint64_t length);
  /// `page` is empty for zeroes.
  void Lay(uint64_t offset, uint64_t length, std::vector<uint8_t> page) {
    writes_.push_back({offset, length, std::move(page)});
  }
  void Grow(uint64_t size) { size_ = std::max(size_, size); }

 private:
  struct Write {
    uint64_t offset, length;
    std::vector<uint8_t> page;
  };

  BlockFile& file_;
  const uint64_t file_size_;
  uint64_t size_;
  bool failed_ = false;
  std::vector<Write> writes_;  // in order
};

struct LogVerdict {
  uint64_t entries = 0;  ///< that a replay would apply; 0: there is no valid sequence
  uint64_t newest = 0;   ///< sequence number
  uint64_t flushed_file_offset = 0;
};
/// Finds the active sequence and lays its writes over the view.
LogVerdict ReplayOver(View* view, const vhdx::Header& header);

}  // namespace kvmbus::virtdev::check
