// SPDX-License-Identifier: Apache-2.0
/// \file
/// FreeSpace: the parts of an image file that nothing owns. In MiB, the granule of the format.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>

#include "virtdev/disk/vhdx/vhdx_bat.h"

namespace kvmbus::virtdev::vhdx {

/// Home: under the owner's lock.
class FreeSpace {
 public:
  /// Serves blocks of `block_length`; the file has `file_length`, of which `used` (sorted,
  /// disjoint) is taken.
  FreeSpace(uint64_t block_length, std::span<const FileRange> used, uint64_t file_length);

  /// Where a block fits; its old content is anybody's. nullopt: the file must grow.
  std::optional<uint64_t> Take();
  /// The same for one MiB: where no block fits, if there is such a place.
  std::optional<uint64_t> TakeOne();
  void Release(uint64_t start, uint64_t length);
  /// Where the free space at the very end of a file of `file_length` begins; `file_length` if there
  /// is none.
  uint64_t EndOfUse(uint64_t file_length) const;
  /// Cuts that off a file of `file_bytes`, unflushed; what the file has then.
  vmm::Result<uint64_t> CutFreeEnd(BlockFile& file, uint64_t file_bytes);

 private:
  uint64_t TakeFront(std::map<uint64_t, uint64_t>::iterator gap, uint64_t taken);
  void Insert(uint64_t start, uint64_t length);
  void Erase(std::map<uint64_t, uint64_t>::iterator gap);

  const uint64_t block_length_;
  std::map<uint64_t, uint64_t> gaps_;  // start to length; never adjacent to each other
  std::set<uint64_t> wide_;            // starts of the gaps that hold a block
  std::set<uint64_t> narrow_;          // of the others
};

}  // namespace kvmbus::virtdev::vhdx
