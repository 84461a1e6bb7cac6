// SPDX-License-Identifier: Apache-2.0
/// \file
/// ImageFiles: what checkpoints, exports and imports need of image files, by virtdev/disk.
#pragma once

#include "vmm/checkpoint/disk_files.h"

namespace kvmbus::cmd {

class ImageFiles final : public vmm::DiskFiles {
 public:
  vmm::Result<void> CreateChild(const std::string& parent, const std::string& path) override;
  vmm::Result<std::string> ParentOf(const std::string& path) override;
  vmm::Result<void> Merge(const std::string& path, const Progress& progress) override;
  vmm::Result<void> Reparent(const std::string& path, const std::string& parent) override;
  vmm::Result<void> Copy(const std::string& path, const std::string& to,
                         const Progress& progress) override;
  vmm::Result<void> Flatten(const std::string& path, const std::string& to,
                            const Progress& progress) override;
};

}  // namespace kvmbus::cmd
