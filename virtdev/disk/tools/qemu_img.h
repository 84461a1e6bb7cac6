// SPDX-License-Identifier: Apache-2.0
/// \file
/// qemu-img as a reader of formats that are not ours.
#pragma once

#include <functional>
#include <string>

#include "vmm/result/result.h"

namespace kvmbus::virtdev {

/// Writes the content of `source` (format `format`, as qemu-img names it) as a raw file. Polls
/// `go_on` and stops with kCancelled if it says false. kFailedPrecondition if qemu-img is not
/// installed.
vmm::Result<void> ReadByQemuImg(const std::string& format, const std::string& source,
                                const std::string& raw, const std::function<bool()>& go_on);

/// qemu-img's name for the format of a file, by its signature; "" for others.
vmm::Result<std::string> ForeignFormatOf(const std::string& path);

}  // namespace kvmbus::virtdev
