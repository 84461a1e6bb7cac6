// SPDX-License-Identifier: Apache-2.0
/// \file
/// A machine's files on their way into a new folder: what an export and an imported copy have in
/// common.
#pragma once

#include <string>
#include <vector>

#include "config/vm.pb.h"
#include "vmm/checkpoint/disk_files.h"

namespace kvmbus::vmm {

inline constexpr uint32_t kCopyFolderMode = 0750;  ///< as the store's own

/// A configuration, and what it becomes.
struct ConfigMove {
  std::string file;
  std::vector<std::string> saved_state;  ///< its files, in the order of SavedStateFilesOf; or none
  config::Vm vm;  ///< as it will be; PlanTransfer sets the paths of disks, kernel and initrd
};

struct FileCopy {
  enum class Kind { kFile, kImage, kFlatImage };
  Kind kind = Kind::kFile;
  std::string from, to;
  std::string parent;  ///< of the copy of a differencing image
  uint64_t bytes = 0;
};

struct Transfer {
  std::string folder;
  std::vector<FileCopy> copies;     ///< parents before children
  std::vector<ConfigMove> configs;  ///< the machine's last: with it, the copy is one

  std::vector<std::string> NewFiles() const;
  std::vector<std::string> NewFolders() const;  ///< parents first
};

/// kFailedPrecondition: one of its disks cannot be copied.
Result<void> CheckCanBeCopied(const config::Vm& vm);

/// The machine's configuration is the last one; each `vm` names the new folder. With `flatten`
/// differencing images become images that stand on none. Opens images; changes nothing.
Result<Transfer> PlanTransfer(std::vector<ConfigMove> configs, bool flatten, DiskFiles& files);

/// Makes all that is to be in the folder, which is there and empty, durably. What it has made when
/// it fails stays.
Result<void> MakeTransfer(const Transfer& transfer, DiskFiles& files,
                          const DiskFiles::Progress& progress);

/// Takes back what MakeTransfer has made of it, as far as it came.
Result<void> RemoveTransfer(const google::protobuf::RepeatedPtrField<std::string>& files,
                            const google::protobuf::RepeatedPtrField<std::string>& folders);

}  // namespace kvmbus::vmm
