// SPDX-License-Identifier: Apache-2.0
/// \file
/// The setup header of a bzImage (Linux's x86 boot protocol, Documentation/arch/x86/boot.rst), read
/// and checked.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "vmm/result/result.h"

namespace kvmbus::firmware {

/// Offsets of the setup header's fields, the same in the file and in boot_params.
namespace setup {
inline constexpr size_t kHeader = 0x1f1;  ///< also setup_sects
inline constexpr size_t kSyssize = 0x1f4;
inline constexpr size_t kVidMode = 0x1fa;
inline constexpr size_t kBootFlag = 0x1fe;
inline constexpr size_t kJump = 0x200;
inline constexpr size_t kMagic = 0x202;
inline constexpr size_t kVersion = 0x206;
inline constexpr size_t kTypeOfLoader = 0x210;
inline constexpr size_t kLoadflags = 0x211;
inline constexpr size_t kRamdiskImage = 0x218;
inline constexpr size_t kRamdiskSize = 0x21c;
inline constexpr size_t kHeapEndPtr = 0x224;
inline constexpr size_t kCmdLinePtr = 0x228;
inline constexpr size_t kInitrdAddrMax = 0x22c;
inline constexpr size_t kKernelAlignment = 0x230;
inline constexpr size_t kRelocatableKernel = 0x234;
inline constexpr size_t kXloadflags = 0x236;
inline constexpr size_t kCmdlineSize = 0x238;
inline constexpr size_t kPayloadOffset = 0x248;
inline constexpr size_t kPayloadLength = 0x24c;
inline constexpr size_t kSetupData = 0x250;
inline constexpr size_t kPrefAddress = 0x258;
inline constexpr size_t kInitSize = 0x260;
inline constexpr size_t kEnd = 0x290;  ///< what boot_params has room for

inline constexpr uint16_t kBootFlagValue = 0xaa55;
inline constexpr uint32_t kMagicValue = 0x53726448;  ///< "HdrS"
inline constexpr uint16_t kOldestVersion = 0x20c;    ///< the first with the 64-bit entry
inline constexpr uint8_t kLoadedHigh = 1;
inline constexpr uint16_t kKernel64 = 1;  ///< xloadflags: the 64-bit entry exists
}  // namespace setup

struct BzImage {
  uint64_t kernel_offset = 0;  ///< in the file, of the protected-mode part
  uint64_t kernel_bytes = 0;
  uint64_t pref_address = 0;
  uint32_t init_size = 0;
  uint32_t cmdline_size = 0;
  uint32_t initrd_addr_max = 0;
  uint64_t payload_offset = 0;  ///< in the file; payload_length 0: not told
  uint64_t payload_length = 0;
  /// The header's own bytes, zero after its end, as boot_params takes them at setup::kHeader.
  std::array<uint8_t, setup::kEnd - setup::kHeader> header{};
};

/// True if the file says that it is a bzImage; `head` may be short.
bool IsBzImage(std::span<const uint8_t> head);

/// `head` is the file's first setup::kEnd bytes at least; `name` starts every message.
vmm::Result<BzImage> ParseBzImage(std::span<const uint8_t> head, uint64_t file_size,
                                  const std::string& name);

}  // namespace kvmbus::firmware
