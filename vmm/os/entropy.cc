// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/entropy.h"

#include <sys/random.h>

#include "vmm/result/result.h"

namespace kvmbus::vmm {

void FillRandom(std::span<uint8_t> buffer) {
  while (!buffer.empty()) {
    const ssize_t n = ::getrandom(buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    KVMBUS_ASSERT(n > 0);
    buffer = buffer.subspan(static_cast<size_t>(n));
  }
}

}  // namespace kvmbus::vmm
