// SPDX-License-Identifier: Apache-2.0
/// \file
/// Copies of files, by the host's own means where it has them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "vmm/result/result.h"

namespace kvmbus::vmm {

/// False: give up (kCancelled, and the copy is gone).
using CopyProgress = std::function<bool(uint64_t done, uint64_t total)>;

/// What the open file `from` holds, into a new file (kAlreadyExists): as shared blocks if the file
/// system can, else holes stay holes. Durable when it returns; an error leaves no file.
Result<void> CopyToNewFile(int from, const std::string& to, const CopyProgress& progress);

/// kFailedPrecondition: the open file is not at `path`, or a symbolic link leads there. Who was
/// told to stay in a folder is not led out of it between looking and opening.
Result<void> CheckIsAt(int fd, const std::string& path);

}  // namespace kvmbus::vmm
