// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/tools/image_io.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace kvmbus::virtdev {
namespace {

using vmm::Result;

/// Holes of sparse files need no reading.
bool IsHole(BlockFile& file, uint64_t offset, uint64_t length) {
  if (file.fd() < 0) return false;
  const off_t data = ::lseek(file.fd(), static_cast<off_t>(offset), SEEK_DATA);
  if (data < 0) return errno == ENXIO;
  return static_cast<uint64_t>(data) >= offset + length;
}

Result<bool> ReadExtents(std::span<const ImageExtent> extents, std::span<uint8_t> buffer) {
  uint64_t done = 0;
  bool data = false;
  for (const ImageExtent& extent : extents) {
    const std::span<uint8_t> part = buffer.subspan(done, extent.length);
    done += extent.length;
    if (extent.kind != ImageExtent::Kind::kData ||
        IsHole(*extent.file, extent.file_offset, extent.length)) {
      std::fill(part.begin(), part.end(), 0);
      continue;
    }
    TRY_VOID(extent.file->Read(part, extent.file_offset));
    data = true;
  }
  return data && !IsZero(buffer);
}

}  // namespace

Result<bool> ReadChain(Chain& chain, uint64_t offset, std::span<uint8_t> buffer) {
  return ReadExtents(chain.MapForRead(offset, buffer.size()), buffer);
}

Result<bool> ReadImage(Image& image, uint64_t offset, std::span<uint8_t> buffer) {
  std::vector<ImageExtent> extents;
  const uint32_t token = image.gate().Enter();
  image.MapLayer(offset, buffer.size(), &extents);
  auto data = ReadExtents(extents, buffer);
  image.gate().Leave(token);
  return data;
}

Result<void> WriteImage(Image& image, uint64_t offset, std::span<const uint8_t> bytes) {
  const uint32_t token = image.gate().Enter();
  const auto write = [&]() -> Result<void> {
    uint64_t done = 0;
    for (const ImageExtent& extent : TRY(image.MapForWrite(offset, bytes.size()))) {
      TRY_VOID(extent.file->Write(bytes.subspan(done, extent.length), extent.file_offset));
      done += extent.length;
    }
    image.WriteDone(offset, bytes.size());
    return {};
  };
  auto written = write();
  image.gate().Leave(token);
  return written;
}

Result<void> ZeroImage(Image& image, uint64_t offset, uint64_t length) {
  const uint32_t token = image.gate().Enter();
  auto zeroed = image.WriteZeroes(offset, length);
  image.gate().Leave(token);
  return zeroed;
}

}  // namespace kvmbus::virtdev
