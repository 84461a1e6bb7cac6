// SPDX-License-Identifier: Apache-2.0
/// \file
/// Reading and writing an image or a chain here and now, for tools. Any thread; errors are the
/// host's.
#pragma once

#include <cstdint>
#include <span>

#include "virtdev/disk/chain.h"
#include "virtdev/disk/image.h"

namespace kvmbus::virtdev {

/// What a guest reads there, through all layers. False: zeroes, and known without a look at them
/// unless they lay in the file.
vmm::Result<bool> ReadChain(Chain& chain, uint64_t offset, std::span<uint8_t> buffer);
/// The same of one image; what is its parent's is left as zeroes.
vmm::Result<bool> ReadImage(Image& image, uint64_t offset, std::span<uint8_t> buffer);
/// Not flushed, either of them.
vmm::Result<void> WriteImage(Image& image, uint64_t offset, std::span<const uint8_t> bytes);
vmm::Result<void> ZeroImage(Image& image, uint64_t offset, uint64_t length);

}  // namespace kvmbus::virtdev
