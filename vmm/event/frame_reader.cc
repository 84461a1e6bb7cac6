// SPDX-License-Identifier: Apache-2.0
#include "vmm/event/frame_reader.h"

#include <bit>
#include <cstring>

namespace kvmbus::vmm {

static_assert(std::endian::native == std::endian::little, "headers are copied as they are");

std::array<char, kFrameHeaderBytes> FrameHeader(uint32_t frame_bytes) {
  return std::bit_cast<std::array<char, kFrameHeaderBytes>>(frame_bytes);
}

Result<std::optional<std::string>> FrameReader::Next() {
  uint32_t frame_bytes;
  if (pending_.size() < kFrameHeaderBytes) return std::optional<std::string>();
  std::memcpy(&frame_bytes, pending_.data(), kFrameHeaderBytes);
  if (frame_bytes > limit_bytes_)
    return MakeError(Code::kOutOfRange, "a frame of {} bytes, the limit is {}", frame_bytes,
                     limit_bytes_);
  if (pending_.size() - kFrameHeaderBytes < frame_bytes) return std::optional<std::string>();
  std::optional<std::string> frame = pending_.substr(kFrameHeaderBytes, frame_bytes);
  pending_.erase(0, kFrameHeaderBytes + frame_bytes);
  return frame;
}

}  // namespace kvmbus::vmm
