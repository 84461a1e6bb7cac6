// SPDX-License-Identifier: Apache-2.0
/// \file
/// DiskFiles: what checkpoints, exports and imports do to image files that no machine writes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "vmm/result/result.h"

namespace kvmbus::vmm {

/// Any thread. All of it is durable when it returns; a crash leaves the old state or the new.
class DiskFiles {
 public:
  virtual ~DiskFiles() = default;
  virtual Result<void> CreateChild(const std::string& parent, const std::string& path) = 0;
  /// The file that a differencing image stands on; "": it is a base.
  virtual Result<std::string> ParentOf(const std::string& path) = 0;
  /// False: give up (kCancelled, and nothing is lost).
  using Progress = std::function<bool(uint64_t done, uint64_t total)>;
  /// Writes a differencing image into its parent, and deletes it.
  virtual Result<void> Merge(const std::string& path, const Progress& progress) = 0;
  /// Links an image to the file that has now what its parent had.
  virtual Result<void> Reparent(const std::string& path, const std::string& parent) = 0;
  /// The file as it is, into a new one. `path` has no symbolic links.
  virtual Result<void> Copy(const std::string& path, const std::string& to,
                            const Progress& progress) = 0;
  /// What a differencing image shows, into a new image of its format that stands on none.
  virtual Result<void> Flatten(const std::string& path, const std::string& to,
                               const Progress& progress) = 0;
};

}  // namespace kvmbus::vmm
