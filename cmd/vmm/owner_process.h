// SPDX-License-Identifier: Apache-2.0
/// \file
/// The process that owns a shared disk: the same program as a worker, of another kind.
#pragma once

#include <string>

#include "vmm/result/result.h"

namespace kvmbus::cmd {

/// Opens the image and serves `<run_dir>/owner.sock` until nobody has used it for a while, or a
/// signal asks for the end; then closes the image clean. The error is why it could not begin, and
/// stands in `<run_dir>/exit` too (worker.ExitRecord).
vmm::Result<void> RunDiskOwner(const std::string& image, const std::string& run_dir);

}  // namespace kvmbus::cmd
