// SPDX-License-Identifier: Apache-2.0
#include "vmm/bus/io_bus.h"

#include <algorithm>

namespace kvmbus::vmm {

Result<void> IoBus::Add(uint64_t base, uint64_t size, const std::string& owner, IoHandler& handler,
                        std::mutex& lock) {
  KVMBUS_ASSERT(size != 0 && base + size > base);
  const auto at =
      std::lower_bound(ranges_.begin(), ranges_.end(), base,
                       [](const Range& range, uint64_t address) { return range.base < address; });
  const Range* clash = nullptr;
  if (at != ranges_.end() && at->base < base + size) clash = &*at;
  if (at != ranges_.begin() && std::prev(at)->base + std::prev(at)->size > base)
    clash = &*std::prev(at);
  if (clash != nullptr)
    return MakeError(Code::kAlreadyExists, "{} {:#x}+{:#x} of '{}' overlaps {:#x}+{:#x} of '{}'",
                     name_, base, size, owner, clash->base, clash->size, clash->owner);
  ranges_.insert(at, {base, size, owner, &handler, &lock});
  return {};
}

const IoBus::Range* IoBus::Find(uint64_t address, unsigned size) const {
  auto at = std::upper_bound(ranges_.begin(), ranges_.end(), address,
                             [](uint64_t value, const Range& range) { return value < range.base; });
  if (at == ranges_.begin()) return nullptr;
  --at;
  return address - at->base + size <= at->size ? &*at : nullptr;
}

uint64_t IoBus::Read(uint64_t address, unsigned size) {
  const uint64_t mask = size >= 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * size)) - 1;
  const Range* range = Find(address, size);
  if (range == nullptr) {
    unclaimed_.Add();
    return mask;
  }
  std::lock_guard guard(*range->lock);
  return range->handler->IoRead(address - range->base, size) & mask;
}

void IoBus::Write(uint64_t address, unsigned size, uint64_t value) {
  const Range* range = Find(address, size);
  if (range == nullptr) {
    unclaimed_.Add();
    return;
  }
  std::lock_guard guard(*range->lock);
  range->handler->IoWrite(address - range->base, size, value);
}

}  // namespace kvmbus::vmm
