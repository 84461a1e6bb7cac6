// SPDX-License-Identifier: Apache-2.0
/// \file
/// FrameReader: cuts a byte stream into frames, each of which has its length in front.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "vmm/result/result.h"

namespace kvmbus::vmm {

/// The length of a frame as a little-endian u32; it does not count itself.
inline constexpr size_t kFrameHeaderBytes = sizeof(uint32_t);
std::array<char, kFrameHeaderBytes> FrameHeader(uint32_t frame_bytes);

/// Pure: bytes in, frames or an error out. Append what has come, then call Next until it has
/// nothing: so no more than one unfinished frame is held.
class FrameReader {
 public:
  /// The limit is for a frame without its header.
  explicit FrameReader(uint32_t limit_bytes) : limit_bytes_(limit_bytes) {}

  /// The stream's next bytes, cut anywhere.
  void Append(std::string_view bytes) { pending_ += bytes; }
  /// The next frame, which may be empty; nullopt: it is not whole yet. kOutOfRange: it is longer
  /// than the limit, which is seen by its header alone. Where the next one begins is not known
  /// then: the error stays.
  Result<std::optional<std::string>> Next();
  /// Of what was appended, the bytes that no frame had yet.
  size_t pending_bytes() const { return pending_.size(); }

 private:
  const uint32_t limit_bytes_;
  std::string pending_;
};

}  // namespace kvmbus::vmm
