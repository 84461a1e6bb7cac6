// SPDX-License-Identifier: Apache-2.0
/// \file
/// The compressed kernel inside a bzImage, decompressed piece by piece: the host does it many times
/// faster than the guest's own code on an emulated or cold processor. What it needs beside its
/// pieces (a dictionary, a window) lives in mappings of its own that are gone when it returns.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "firmware/linux/boot_file.h"

namespace kvmbus::firmware {

enum class Compression { kNone, kXz, kLz4Legacy, kZstd, kGzip };

/// From the payload's first bytes; nullopt for one that is not supported (bzip2, LZMA, LZO).
std::optional<Compression> DetectCompression(std::span<const uint8_t> head);

/// Gets the bytes in order.
using PieceSink = std::function<vmm::Result<void>(std::span<const uint8_t>)>;

/// One compressed range of a file.
struct Payload {
  uint64_t offset = 0;
  uint64_t length = 0;
  uint64_t output_bytes = 0;  ///< what it must decompress to, no more and no less
  Compression compression = Compression::kNone;
};

/// `length` as the setup header tells it. The payload's last four bytes are the output's length;
/// one over `limit_bytes` is refused.
vmm::Result<Payload> OpenPayload(const BootFile& file, uint64_t offset, uint64_t length,
                                 uint64_t limit_bytes);

vmm::Result<void> Decompress(const BootFile& file, const Payload& payload, const PieceSink& sink);

}  // namespace kvmbus::firmware
