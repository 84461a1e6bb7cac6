// SPDX-License-Identifier: Apache-2.0
// Growing the disk in an image file.
#include "virtdev/disk/disk_tools.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/vhdx_grow.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

Result<void> GrowRaw(BlockFile& file, uint64_t size_bytes) {
  const uint64_t now = TRY(file.Size());
  if (file.is_device())
    return vmm::Error(Code::kInvalidArgument, "it is a block device: the host gives it its size");
  if (size_bytes < now || size_bytes % 512 != 0)
    return MakeError(
        Code::kInvalidArgument,
        "{} bytes: a multiple of 512 of at least {} is needed; it can grow, not shrink", size_bytes,
        now);
  TRY_VOID(file.Resize(size_bytes));
  return file.Flush();
}

Result<void> GrowVhdx(std::unique_ptr<BlockFile> file, uint64_t size_bytes) {
  const vhdx::VhdxFile vhdx = TRY(vhdx::OpenVhdxFile(std::move(file), false));
  return vhdx::GrowDisk(vhdx, size_bytes);
}

Result<void> Grow(std::unique_ptr<BlockFile> file, ImageFormat format, uint64_t size_bytes) {
  switch (format) {
    case ImageFormat::kRaw:
      return GrowRaw(*file, size_bytes);
    case ImageFormat::kVhdx:
      return GrowVhdx(std::move(file), size_bytes);
    case ImageFormat::kVhd:
      break;
  }
  return vmm::Error(Code::kUnimplemented,
                    "a VHD is not resized: make a VHDX of it with 'vmctl disk convert'");
}

}  // namespace

Result<void> ResizeDisk(const std::string& path, uint64_t size_bytes) {
  auto file = TRY(OpenBlockFile(path, false));
  const ImageFormat format = TRY(FormatOf(*file, path));
  TRY_VOID_CTX(Grow(std::move(file), format, size_bytes), "'{}'", path);
  return {};
}

}  // namespace kvmbus::virtdev
