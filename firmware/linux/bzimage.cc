// SPDX-License-Identifier: Apache-2.0
#include "firmware/linux/bzimage.h"

#include <algorithm>
#include <bit>

#include "firmware/linux/little_endian.h"

namespace kvmbus::firmware {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

constexpr uint64_t kSectorBytes = 512;
constexpr uint64_t kLowestAddress = 1u << 20;

Result<void> LocateKernel(std::span<const uint8_t> head, uint64_t file_size,
                          const std::string& name, BzImage* image) {
  uint64_t setup_sects = head[setup::kHeader];
  if (setup_sects == 0) setup_sects = 4;  // as the protocol says
  image->kernel_offset = (setup_sects + 1) * kSectorBytes;
  const uint64_t promised = uint64_t{LoadField<uint32_t>(head, setup::kSyssize)} * 16;
  if (promised == 0) return MakeError(Code::kInvalidArgument, "{}: syssize is 0", name);
  // The last paragraph need not be whole.
  if (file_size < image->kernel_offset || file_size - image->kernel_offset + 15 < promised)
    return MakeError(Code::kDataLoss,
                     "{} is truncated: setup_sects and syssize ask for {} bytes, it has {}", name,
                     image->kernel_offset + promised, file_size);
  image->kernel_bytes = std::min(promised, file_size - image->kernel_offset);
  return {};
}

Result<void> CheckPlacement(std::span<const uint8_t> head, const std::string& name,
                            const BzImage& image) {
  if (image.init_size == 0) return MakeError(Code::kInvalidArgument, "{}: init_size is 0", name);
  if (image.pref_address < kLowestAddress || image.pref_address >> 32 != 0)
    return MakeError(Code::kInvalidArgument,
                     "{}: pref_address {:#x} is not between 1 MiB and 4 GiB", name,
                     image.pref_address);
  const auto alignment = LoadField<uint32_t>(head, setup::kKernelAlignment);
  if (head[setup::kRelocatableKernel] == 0) return {};
  if (!std::has_single_bit(alignment) || image.pref_address % alignment != 0)
    return MakeError(Code::kInvalidArgument,
                     "{}: kernel_alignment {:#x} is no power of two that divides pref_address",
                     name, alignment);
  return {};
}

Result<void> LocatePayload(std::span<const uint8_t> head, const std::string& name, BzImage* image) {
  const uint64_t offset = LoadField<uint32_t>(head, setup::kPayloadOffset);
  const uint64_t length = LoadField<uint32_t>(head, setup::kPayloadLength);
  if (length == 0) return {};
  if (offset > image->kernel_bytes || length > image->kernel_bytes - offset)
    return MakeError(Code::kInvalidArgument,
                     "{}: payload_offset {:#x} and payload_length {:#x} are outside of the kernel",
                     name, offset, length);
  image->payload_offset = image->kernel_offset + offset;
  image->payload_length = length;
  return {};
}

}  // namespace

bool IsBzImage(std::span<const uint8_t> head) {
  return head.size() >= setup::kVersion &&
         LoadField<uint16_t>(head, setup::kBootFlag) == setup::kBootFlagValue &&
         LoadField<uint32_t>(head, setup::kMagic) == setup::kMagicValue;
}

Result<BzImage> ParseBzImage(std::span<const uint8_t> head, uint64_t file_size,
                             const std::string& name) {
  if (!IsBzImage(head)) return MakeError(Code::kInvalidArgument, "{} is no bzImage", name);
  if (head.size() < setup::kEnd)
    return MakeError(Code::kDataLoss, "{} is truncated within its setup header", name);
  const auto version = LoadField<uint16_t>(head, setup::kVersion);
  if (version < setup::kOldestVersion)
    return MakeError(Code::kInvalidArgument,
                     "{}: boot protocol version {}.{} is older than 2.12; use Linux 3.8 or later",
                     name, version >> 8, version & 0xff);
  if ((LoadField<uint16_t>(head, setup::kXloadflags) & setup::kKernel64) == 0)
    return MakeError(Code::kInvalidArgument,
                     "{}: xloadflags shows no 64-bit entry; use a kernel for amd64", name);
  if ((head[setup::kLoadflags] & setup::kLoadedHigh) == 0)
    return MakeError(Code::kInvalidArgument, "{}: loadflags does not say LOADED_HIGH", name);
  const size_t header_end = setup::kMagic + head[setup::kJump + 1];
  if (header_end < setup::kInitSize + 4 || header_end > setup::kEnd)
    return MakeError(Code::kInvalidArgument,
                     "{}: the setup header ends at {:#x}, outside of {:#x} to {:#x}", name,
                     header_end, setup::kInitSize + 4, setup::kEnd);
  BzImage image;
  TRY_VOID(LocateKernel(head, file_size, name, &image));
  image.pref_address = LoadField<uint64_t>(head, setup::kPrefAddress);
  image.init_size = LoadField<uint32_t>(head, setup::kInitSize);
  image.cmdline_size = LoadField<uint32_t>(head, setup::kCmdlineSize);
  image.initrd_addr_max = LoadField<uint32_t>(head, setup::kInitrdAddrMax);
  TRY_VOID(CheckPlacement(head, name, image));
  TRY_VOID(LocatePayload(head, name, &image));
  std::copy_n(head.begin() + setup::kHeader, header_end - setup::kHeader, image.header.begin());
  return image;
}

}  // namespace kvmbus::firmware
