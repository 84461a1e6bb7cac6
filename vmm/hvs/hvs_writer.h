// SPDX-License-Identifier: Apache-2.0
/// \file
/// HvsWriter: writes a new HyperVStorage container (.vmcx, .vmrs; format version 0x0400).
#pragma once

#include <mutex>
#include <string_view>
#include <vector>

#include "vmm/hvs/hvs_format.h"
#include "vmm/hvs/key_table_writer.h"
#include "vmm/hvs/key_tree.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

/// Objects first, in any order and from any thread, then the tree, once. The file is a container
/// when Finish has returned and the caller has synced it.
class HvsWriter {
 public:
  static constexpr uint32_t kMaxObjectBytes = 64u << 20;

  /// `fd`: an empty file, open for reading and writing, that outlives the writer.
  explicit HvsWriter(int fd);

  /// Room for an object, which the caller fills with pwrite(2); what it leaves out is a hole and
  /// reads as zeroes.
  Result<FileObject> Reserve(uint32_t size);
  /// Of an object that is not to be in the container after all; its room stays, and is a hole.
  void GiveUp(const FileObject& object);
  Result<FileObject> Append(std::string_view bytes);

  /// `root` is the container's unnamed root. Values of 2048 bytes and more become objects. Writes
  /// key tables, object tables, the empty replay log and both headers. kInvalidArgument: a tree
  /// that the format cannot hold (a name of more than 254 bytes, a depth of more than 64).
  Result<void> Finish(const Key& root);

 private:
  Result<void> CheckNode(const Key& node, uint32_t depth) const;
  Result<void> AddChildren(const Key& node, hvs::KeyTableWriter::Place place,
                           hvs::KeyTableWriter* tables);
  Result<void> WriteObjectTables(const std::vector<hvs::ObjectEntry>& entries);
  Result<void> WriteReplayLogAndHeaders();
  uint64_t Take(uint64_t size);  // `mutex_` is held, or nobody else writes any more

  const int fd_;
  std::mutex mutex_;
  uint64_t end_;                     // of what is taken
  std::vector<FileObject> objects_;  // that the object tables will list
};

}  // namespace kvmbus::vmm
