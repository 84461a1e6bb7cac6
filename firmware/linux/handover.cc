// SPDX-License-Identifier: Apache-2.0
#include "firmware/linux/handover.h"

#include <algorithm>

#include "firmware/linux/little_endian.h"

namespace kvmbus::firmware {
namespace {

using vmm::GuestMemory;
using vmm::Result;

// boot_params beside the setup header
constexpr size_t kAcpiRsdpAddr = 0x070;
constexpr size_t kE820Entries = 0x1e8;
constexpr size_t kE820Table = 0x2d0;
constexpr size_t kE820EntryBytes = 20;
constexpr size_t kE820MaxEntries = 128;

constexpr uint8_t kUnknownLoader = 0xff;
constexpr uint16_t kNormalVideoMode = 0xffff;
// loadflags that are the loader's to say: KASLR is on, a heap is there; neither is true
constexpr uint8_t kLoaderFlags = 0x82;

// hvm_start_info, version 1
constexpr size_t kStartInfoBytes = 56;
constexpr size_t kModuleBytes = 32;
constexpr size_t kPvhMapEntryBytes = 24;
constexpr uint32_t kPvhMagic = 0x336ec578;
constexpr uint32_t kPvhVersion = 1;

}  // namespace

SetupHeader::SetupHeader() {
  std::array<uint8_t, setup::kEnd> page{};
  StoreField<uint16_t>(page, setup::kBootFlag, setup::kBootFlagValue);
  StoreField<uint32_t>(page, setup::kMagic, setup::kMagicValue);
  StoreField<uint16_t>(page, setup::kVersion, setup::kOldestVersion);
  page[setup::kLoadflags] = setup::kLoadedHigh;
  StoreField<uint32_t>(page, setup::kInitrdAddrMax, initrd_addr_max_);
  StoreField<uint32_t>(page, setup::kKernelAlignment, 16u << 20);
  StoreField<uint16_t>(page, setup::kXloadflags, setup::kKernel64);
  StoreField<uint32_t>(page, setup::kCmdlineSize, cmdline_size_);
  std::copy(page.begin() + setup::kHeader, page.end(), bytes_.begin());
}

SetupHeader::SetupHeader(const BzImage& image)
    : bytes_(image.header),
      cmdline_size_(image.cmdline_size),
      initrd_addr_max_(image.initrd_addr_max) {}

Result<void> WriteBootParams(GuestMemory& memory, const Handover& handover) {
  std::array<uint8_t, vmm::kPageSize> page{};
  std::copy(handover.header.bytes().begin(), handover.header.bytes().end(),
            page.begin() + setup::kHeader);
  page[setup::kTypeOfLoader] = kUnknownLoader;
  page[setup::kLoadflags] &= static_cast<uint8_t>(~kLoaderFlags);
  StoreField<uint16_t>(page, setup::kVidMode, kNormalVideoMode);
  StoreField<uint16_t>(page, setup::kHeapEndPtr, 0);
  StoreField<uint64_t>(page, setup::kSetupData, 0);
  StoreField<uint32_t>(page, setup::kCmdLinePtr, static_cast<uint32_t>(handover.command_line_gpa));
  StoreField<uint32_t>(page, setup::kRamdiskImage, static_cast<uint32_t>(handover.initrd_gpa));
  StoreField<uint32_t>(page, setup::kRamdiskSize, static_cast<uint32_t>(handover.initrd_bytes));
  StoreField<uint64_t>(page, kAcpiRsdpAddr, handover.rsdp_gpa);
  KVMBUS_ASSERT(handover.memory_map.size() <= kE820MaxEntries);
  page[kE820Entries] = static_cast<uint8_t>(handover.memory_map.size());
  size_t at = kE820Table;
  for (const MapEntry& entry : handover.memory_map) {
    StoreField<uint64_t>(page, at, entry.gpa);
    StoreField<uint64_t>(page, at + 8, entry.size);
    StoreField<uint32_t>(page, at + 16, entry.type);
    at += kE820EntryBytes;
  }
  return WriteLow(memory, kBootParamsGpa, page.data(), page.size());
}

Result<void> WritePvhStartInfo(GuestMemory& memory, const Handover& handover) {
  std::array<uint8_t, vmm::kPageSize> page{};
  const bool initrd = handover.initrd_bytes != 0;
  constexpr size_t kMapAt = kStartInfoBytes + kModuleBytes;
  StoreField<uint32_t>(page, 0, kPvhMagic);
  StoreField<uint32_t>(page, 4, kPvhVersion);
  StoreField<uint32_t>(page, 12, initrd ? 1 : 0);  // nr_modules
  StoreField<uint64_t>(page, 16, initrd ? kPvhStartInfoGpa + kStartInfoBytes : 0);
  StoreField<uint64_t>(page, 24, handover.command_line_gpa);
  StoreField<uint64_t>(page, 32, handover.rsdp_gpa);
  StoreField<uint64_t>(page, 40, kPvhStartInfoGpa + kMapAt);
  StoreField<uint32_t>(page, 48, static_cast<uint32_t>(handover.memory_map.size()));
  if (initrd) {
    StoreField<uint64_t>(page, kStartInfoBytes, handover.initrd_gpa);
    StoreField<uint64_t>(page, kStartInfoBytes + 8, handover.initrd_bytes);
  }
  KVMBUS_ASSERT(kMapAt + handover.memory_map.size() * kPvhMapEntryBytes <= page.size());
  size_t at = kMapAt;
  for (const MapEntry& entry : handover.memory_map) {
    StoreField<uint64_t>(page, at, entry.gpa);
    StoreField<uint64_t>(page, at + 8, entry.size);
    StoreField<uint32_t>(page, at + 16, entry.type);
    at += kPvhMapEntryBytes;
  }
  return WriteLow(memory, kPvhStartInfoGpa, page.data(), page.size());
}

}  // namespace kvmbus::firmware
