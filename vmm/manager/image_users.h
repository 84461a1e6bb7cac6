// SPDX-License-Identifier: Apache-2.0
/// \file
/// Who stands on an image file: what a merge by hand would take from whom.
#pragma once

#include <string>
#include <vector>

#include "vmm/checkpoint/disk_files.h"
#include "vmm/manager/inventory.h"

namespace kvmbus::vmm {

/// A configuration with disks: a machine's, or a checkpoint's.
struct ImageUser {
  config::Vm config;
  std::string machine;  ///< its name
  bool is_checkpoint = false;
  bool runs = false;
};

/// All there are. Home: the manager's loop.
std::vector<ImageUser> ImageUsersOf(const Inventory& inventory);

/// kFailedPrecondition: the merge of `path` into its parent would take from a checkpoint or from
/// another disk what it stands on; or `offline`, without the worker that links what stands on
/// `path` anew. Reads the images' parents; any thread.
Result<void> CheckMerge(const std::string& path, bool offline, const std::vector<ImageUser>& users,
                        DiskFiles& files);

}  // namespace kvmbus::vmm
