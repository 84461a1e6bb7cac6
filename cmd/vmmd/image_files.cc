// SPDX-License-Identifier: Apache-2.0
#include "cmd/vmmd/image_files.h"

#include "virtdev/disk/image_format.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "vmm/os/file_copy.h"

namespace kvmbus::cmd {

using vmm::Result;

Result<void> ImageFiles::CreateChild(const std::string& parent, const std::string& path) {
  virtdev::CreateDiskOptions options;
  options.format = virtdev::FormatOfName(path);
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

Result<void> ImageFiles::Copy(const std::string& path, const std::string& to,
                              const Progress& progress) {
  const auto file = TRY(virtdev::OpenBlockFile(path, true));
  if (file->is_device())
    return vmm::MakeError(vmm::Code::kFailedPrecondition,
                          "'{}' is a device of the host, which cannot be copied; detach it first, "
                          "or convert it into an image",
                          path);
  TRY_VOID(vmm::CheckIsAt(file->fd(), path));
  return vmm::CopyToNewFile(file->fd(), to, progress);
}

Result<void> ImageFiles::Flatten(const std::string& path, const std::string& to,
                                 const Progress& progress) {
  const virtdev::DiskDescription disk = TRY(virtdev::DescribeDisk(path));
  virtdev::CreateDiskOptions options;
  options.format = disk.format;
  options.block_bytes = disk.block_bytes;
  options.logical_sector = disk.logical_sector;
  options.physical_sector = disk.physical_sector;
  return virtdev::ConvertDisk(path, to, options, progress);
}

}  // namespace kvmbus::cmd
