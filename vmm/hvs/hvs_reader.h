// SPDX-License-Identifier: Apache-2.0
/// \file
/// Reads HyperVStorage containers, whoever wrote them.
#pragma once

#include <memory>
#include <string>

#include "vmm/hvs/hvs_format.h"
#include "vmm/hvs/key_tree.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

namespace hvs {
class FileView;
}

/// A container as it was when it was opened. A replay log with entries is applied to what is read,
/// never to the file.
class HvsReader {
 public:
  struct Limits {
    /// All keys together, and all object tables; kOutOfRange beyond.
    uint64_t tree_bytes = hvs::kMaxTreeBytes;
    uint32_t inline_bytes = 1u << 20;  ///< objects that are larger stay a FileObject, and so do
                                       ///< those that would exceed `tree_bytes`
  };

  /// `fd` outlives the reader. kDataLoss says what is damaged and where; kUnimplemented: a format
  /// version that is not known.
  static Result<HvsReader> Open(int fd, const Limits& limits);
  static Result<HvsReader> Open(int fd) { return Open(fd, Limits()); }

  const Key& root() const { return root_; }
  /// An object of the tree; kOutOfRange beyond `limit_bytes`, kDataLoss outside of the file.
  Result<std::string> Read(const FileObject& object, uint32_t limit_bytes) const;

 private:
  HvsReader(std::shared_ptr<const hvs::FileView> view, Key root)
      : view_(std::move(view)), root_(std::move(root)) {}

  std::shared_ptr<const hvs::FileView> view_;
  Key root_;
};

}  // namespace kvmbus::vmm
