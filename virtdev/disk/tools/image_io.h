// SPDX-License-Identifier: Apache-2.0
/// \file
/// Reading and writing an image or a chain here and now, for tools. Any thread; errors are the
/// host's.
#pragma once

#include <cstdint>
#include <span>

#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/image.h"

namespace kvmbus::virtdev {

/// Reads what a guest finds there, through all layers. False: all of it is zeroes (the buffer is
/// looked at only if some of it was read from a file).
vmm::Result<bool> ReadChain(Chain& chain, uint64_t offset, std::span<uint8_t> buffer);
/// The same for one image alone; where its parent would be read, the buffer gets zeroes.
vmm::Result<bool> ReadImage(Image& image, uint64_t offset, std::span<uint8_t> buffer);
/// Neither WriteImage nor ZeroImage flushes.
vmm::Result<void> WriteImage(Image& image, uint64_t offset, std::span<const uint8_t> bytes);
vmm::Result<void> ZeroImage(Image& image, uint64_t offset, uint64_t length);

}  // namespace kvmbus::virtdev
