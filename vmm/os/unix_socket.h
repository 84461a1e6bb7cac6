// SPDX-License-Identifier: Apache-2.0
/// \file
/// Unix stream sockets: non-blocking, close-on-exec.
#pragma once

#include <string>

#include "vmm/os/fd.h"

namespace kvmbus::vmm {

/// Binds and listens; a stale socket file at `path` is removed first.
Result<Fd> ListenUnix(const std::string& path, mode_t mode = 0660);
/// An accepted connection, or an invalid Fd when there is none waiting.
Fd AcceptUnix(int listener);
Result<Fd> ConnectUnix(const std::string& path);

}  // namespace kvmbus::vmm
