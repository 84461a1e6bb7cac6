// SPDX-License-Identifier: Apache-2.0
/// \file
/// A block of saved memory, compressed: one zstd frame with a checksum of what is in it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "vmm/result/result.h"

namespace kvmbus::vmm {

class BlockCompressor {
 public:
  BlockCompressor();
  ~BlockCompressor();

  /// False: it does not shrink by as much as a page, and is better stored as it is.
  bool Compress(std::span<const uint8_t> block, std::vector<uint8_t>* compressed);

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

/// Fills `block`. kDataLoss: `compressed` is not of exactly so many bytes, or was changed.
Result<void> DecompressBlock(std::span<const uint8_t> compressed, std::span<uint8_t> block);

}  // namespace kvmbus::vmm
