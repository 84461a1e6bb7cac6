// SPDX-License-Identifier: Apache-2.0
#include <sys/mman.h>

#include "firmware/linux/scratch.h"
#include "vmm/result/result.h"

namespace kvmbus::firmware {
namespace {

void* Map(size_t size) {
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

constexpr size_t kLengthBytes = 64;  // before each allocation; keeps a cache line's alignment

void* Allocate(void*, size_t count, size_t size) {
  size_t total;
  if (__builtin_mul_overflow(count, size, &total) ||
      __builtin_add_overflow(total, kLengthBytes, &total))
    return nullptr;
  void* memory = Map(total);
  if (memory == nullptr) return nullptr;
  // SAFETY: the mapping is longer than its length field.
  *static_cast<size_t*>(memory) = total;
  return static_cast<uint8_t*>(memory) + kLengthBytes;
}

void Free(void*, void* memory) {
  if (memory == nullptr) return;
  // SAFETY: only what Allocate returned comes here, so that the length stands before it.
  uint8_t* start = static_cast<uint8_t*>(memory) - kLengthBytes;
  ::munmap(start, *reinterpret_cast<size_t*>(start));
}

}  // namespace

Scratch::Scratch(size_t size) {
  void* memory = Map(size);
  KVMBUS_ASSERT(memory != nullptr);  // like operator new, which ends the process too
  bytes_ = {static_cast<uint8_t*>(memory), size};
}

Scratch::~Scratch() { ::munmap(bytes_.data(), bytes_.size()); }

lzma_allocator ScratchLzmaAllocator() { return {&Allocate, &Free, nullptr}; }

}  // namespace kvmbus::firmware
