// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <filesystem>

#include "vmm/shared_disk/protocol.h"

namespace kvmbus::vmm::shared_disk {

std::string OwnerFolder(const std::string& run_dir, const std::string& image) {
  std::error_code ignored;
  const std::string whole = std::filesystem::weakly_canonical(image, ignored).string();
  uint64_t hash[2] = {0xcbf29ce484222325, 0x84222325cbf29ce4};  // FNV-1a, two of them
  for (const char c : whole.empty() ? image : whole) {
    for (uint64_t& value : hash) value = (value ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  }
  return fmt::format("{}/disks/{:016x}{:016x}", run_dir, hash[0], hash[1]);
}

}  // namespace kvmbus::vmm::shared_disk
