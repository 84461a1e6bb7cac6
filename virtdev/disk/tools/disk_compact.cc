// SPDX-License-Identifier: Apache-2.0
// Making an image file no larger than its disk needs.
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/vhd/vhd_compact.h"
#include "virtdev/disk/vhdx/vhdx_compact.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::Result;

Result<void> Compact(std::unique_ptr<BlockFile> file, ImageFormat format, bool quick,
                     const Progress& progress) {
  switch (format) {
    case ImageFormat::kRaw:
      return Error(Code::kInvalidArgument,
                   "a raw image has no blocks to give up: 'fallocate --dig-holes' does that");
    case ImageFormat::kVhdx: {
      const vhdx::VhdxFile vhdx = TRY(vhdx::OpenVhdxFile(std::move(file), false));
      return vhdx::CompactVhdx(vhdx, !quick, progress);
    }
    case ImageFormat::kVhd:
      return vhd::CompactVhd(std::move(file), !quick, progress);
  }
  return Error(Code::kInternal, "a format that nobody compacts");
}

}  // namespace

Result<void> CompactDisk(const std::string& path, bool quick, const Progress& progress) {
  auto file = TRY(OpenBlockFile(path, false));
  const ImageFormat format = TRY(FormatOf(*file, path));
  TRY_VOID_CTX(Compact(std::move(file), format, quick, progress), "'{}'", path);
  return {};
}

}  // namespace kvmbus::virtdev
