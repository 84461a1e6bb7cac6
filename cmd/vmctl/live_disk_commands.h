// SPDX-License-Identifier: Apache-2.0
/// \file
/// vmctl disk ... on a file that a running virtual machine uses: asked of vmmd.
#pragma once

#include <string>

#include "cmd/vmctl/commands.h"
#include "virtdev/disk/tools/disk_tools.h"

namespace kvmbus::cmd {

/// Whether the image may be merged, or resized, without vmmd: an exit status, after the line that
/// says why not. Without a vmmd nobody objects.
int CheckDiskChange(const Context& context, const std::string& path, bool merges);

/// Each returns the exit status. `refused` is what was said of the file while it was tried without
/// vmmd: it is what is told if no running virtual machine uses it.
int ResizeDiskInUse(const Context& context, const std::string& path, uint64_t size_bytes,
                    const vmm::Error& refused);
int MergeDiskInUse(const Context& context, const std::string& path,
                   const virtdev::Progress& progress, const vmm::Error& refused);
/// The virtual machine that writes `parent` writes the child from then on.
int CreateChildInUse(const Context& context, const std::string& path, const std::string& parent);

}  // namespace kvmbus::cmd
