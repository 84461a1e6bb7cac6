// SPDX-License-Identifier: Apache-2.0
/// \file
/// NewFile: an image file that appears under its name when it is whole, or not at all.
#pragma once

#include <memory>
#include <string>

#include "virtdev/disk/block_file.h"

namespace kvmbus::virtdev {

/// Made without a name, or, where the file system has no such files, under a temporary one beside
/// its own; gone with the object unless it was published.
class NewFile {
 public:
  /// kAlreadyExists if there is a file of that name.
  static vmm::Result<NewFile> Create(const std::string& path);
  NewFile(NewFile&& other) noexcept = default;
  ~NewFile();

  BlockFile& file() { return *file_; }
  /// After Publish: the file, open and locked.
  std::unique_ptr<BlockFile> Take();
  /// Durable, then named. Never replaces a file that came meanwhile (kAlreadyExists).
  vmm::Result<void> Publish();

 private:
  NewFile(std::string path, std::string temporary, std::unique_ptr<BlockFile> file)
      : path_(std::move(path)), temporary_(std::move(temporary)), file_(std::move(file)) {}

  int GiveName() const;  ///< < 0: errno says why not

  std::string path_, temporary_;     // temporary_: "" if it has no name
  std::unique_ptr<BlockFile> file_;  // null once moved from
};

}  // namespace kvmbus::virtdev
