// SPDX-License-Identifier: Apache-2.0
/// \file
/// Small kernels in the forms that real ones have, for tests: an ELF file of one code segment with
/// a note, and a bzImage around a payload.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "firmware/linux/kernel_payload.h"

namespace kvmbus::firmware::testing {

using Image = std::vector<uint8_t>;

inline constexpr uint64_t kElfEntry = 0x200000;
inline constexpr uint32_t kElfPvhEntry = 0x200010;
inline constexpr uint64_t kElfSegmentBytes = 0x1800;
inline constexpr uint64_t kElfMemoryBytes = 0x3000;

/// Segment 1 (code at kElfEntry) is filled with MakeCode's bytes, segment 2 is one page after it.
Image MakeElf(bool with_pvh_note = true);
Image MakeCode();

/// As the kernel's build compresses: with the output's length behind, except gzip (whose trailer it
/// is).
Image Compress(Compression compression, std::span<const uint8_t> plain);

inline constexpr uint64_t kBzPrefAddress = 0x200000;
inline constexpr uint32_t kBzInitSize = 0x100000;
inline constexpr uint32_t kBzPayloadOffset = 0x240;

/// Protocol 2.15, relocatable, one setup sector; `payload` at kBzPayloadOffset.
Image MakeBzImage(std::span<const uint8_t> payload);

/// Overwrites a field.
template <typename T>
Image With(Image image, size_t offset, T value) {
  for (size_t i = 0; i < sizeof(T); ++i)
    image.at(offset + i) = static_cast<uint8_t>(static_cast<uint64_t>(value) >> (8 * i));
  return image;
}

}  // namespace kvmbus::firmware::testing
