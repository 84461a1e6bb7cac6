// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gives a differencing VHDX file another parent.
#pragma once

#include "virtdev/disk/image.h"
#include "virtdev/disk/vhdx/vhdx_file.h"
#include "virtdev/disk/vhdx/vhdx_journal.h"

namespace kvmbus::virtdev::vhdx {

/// What replaces the parent locator in one commit. kOutOfRange: the metadata region has no room.
vmm::Result<std::vector<Journal::Page>> LocatorPages(const VhdxFile& vhdx,
                                                     const ParentReference& parent);
/// Replaces the parent locator, through the log: after a crash the file names the old parent or the
/// new one. `vhdx` was opened for writing. kOutOfRange: the metadata region has no room for it.
vmm::Result<void> ReplaceParentLocator(const VhdxFile& vhdx, const ParentReference& parent);

}  // namespace kvmbus::virtdev::vhdx
