// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmmd/image_files.h"

#include "virtdev/disk/disk_tools.h"

namespace kvmbus::cmd {

using vmm::Result;

Result<void> ImageFiles::CreateChild(const std::string& parent, const std::string& path) {
  virtdev::CreateDiskOptions options;
  options.parent = parent;
  return virtdev::CreateDisk(path, options);
}

Result<std::string> ImageFiles::ParentOf(const std::string& path) {
  return virtdev::ParentOfDisk(path);
}

Result<void> ImageFiles::Merge(const std::string& path, const Progress& progress) {
  return virtdev::MergeDisk(path, progress);
}

Result<void> ImageFiles::Reparent(const std::string& path, const std::string& parent) {
  // The parent has what the old one had and more, under an identity of its own.
  return virtdev::ReparentDisk(path, parent, true);
}

}  // namespace kvmbus::cmd
