// SPDX-License-Identifier: Apache-2.0
/// \file
/// A container's bytes as they would be after its replay log: what waits there lies over the file.
/// For hvs_reader.cc.
#pragma once

#include <map>
#include <string>

#include "vmm/hvs/hvs_format.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm::hvs {

class FileView {
 public:
  /// Chooses the header and reads the replay log. `fd` outlives it.
  static Result<FileView> Open(int fd);

  const Header& header() const { return header_; }
  /// The file's size, rounded up: the last object may end beyond the file, and reads as zeroes
  /// there.
  uint64_t size() const { return size_; }
  /// kDataLoss for what does not lie within size().
  Result<std::string> Read(uint64_t offset, uint64_t length) const;

 private:
  static constexpr uint64_t kPage = 4096;

  FileView(int fd, uint64_t file_size)
      : fd_(fd), file_size_(file_size), size_(AlignUp(file_size, kMaxAlignment)) {}
  Result<void> ChooseHeader();
  Result<void> ApplyReplayLog();
  Result<void> Patch(uint64_t offset, std::string_view bytes);
  Result<std::string> ReadFile(uint64_t offset, uint64_t length) const;
  bool Holds(uint64_t offset, uint64_t length) const {
    return offset <= size_ && length <= size_ - offset;
  }

  int fd_;
  uint64_t file_size_, size_;
  Header header_ = {};
  std::map<uint64_t, std::string> pages_;  ///< that the log changed, by number
};

}  // namespace kvmbus::vmm::hvs
