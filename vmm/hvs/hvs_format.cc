// SPDX-License-Identifier: Apache-2.0
#include "vmm/hvs/hvs_format.h"

#include <isa-l/crc.h>

namespace kvmbus::vmm::hvs {

uint32_t Crc32(std::string_view bytes, uint32_t before) {
  return ::crc32_gzip_refl(before, reinterpret_cast<const unsigned char*>(bytes.data()),
                           bytes.size());
}

}  // namespace kvmbus::vmm::hvs
