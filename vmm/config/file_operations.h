// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the store does to files, a step each, so that tests can stop it after any of them.
#pragma once

#include <string>
#include <string_view>

#include "vmm/result/result.h"

namespace kvmbus::vmm {

class FileOperations {
 public:
  virtual ~FileOperations() = default;
  /// All of it or nothing, and durable; makes the folder. Mode 0640.
  virtual Result<void> Replace(const std::string& path, std::string_view content);
  /// And its folder, if that is empty and has the same name. It need not be there.
  virtual Result<void> Remove(const std::string& path);
};

}  // namespace kvmbus::vmm
