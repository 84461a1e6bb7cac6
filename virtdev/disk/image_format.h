// SPDX-License-Identifier: Apache-2.0
/// \file
/// What format an image file has.
#pragma once

#include <string>

#include "virtdev/disk/block_file.h"
#include "virtdev/disk/image.h"

namespace kvmbus::virtdev {

enum class ImageFormat { kRaw, kVhd, kVhdx };

/// Name and content must agree: .vhdx and .avhdx are VHDX files, .vhd and .avhd VHD files, and no
/// others are. Content alone does not decide, for a guest writes the content of a raw disk, and
/// could make its next start read an image of its own making. A block device is raw. Files of other
/// programs' formats (qcow2, vmdk ...) under a name that says so are refused: kInvalidArgument,
/// with the remedy.
vmm::Result<ImageFormat> FormatOf(BlockFile& file, const std::string& path);

bool IsVhdxName(const std::string& path);
bool IsVhdName(const std::string& path);
/// What a new image of that name is: "vhdx", "vhd", or "raw" (.raw, .img); "vhdx" for other names.
std::string FormatOfName(const std::string& path);
/// What Image::format() calls it: "vhdx", "vhd" or "raw".
ImageFormat FormatNamed(std::string_view name);
/// True for names of formats that 'vmctl disk convert' reads by way of qemu-img.
bool IsForeignName(const std::string& path);

/// Opens an image whose format is known, without what lies below it. `raw_id`: a raw disk's id.
vmm::Result<std::unique_ptr<Image>> OpenImageFile(std::unique_ptr<BlockFile> file,
                                                  ImageFormat format, bool read_only,
                                                  const vmm::Guid& raw_id = {});
/// Opens one image, without what lies below it: locks, replays; errors name the path.
vmm::Result<std::unique_ptr<Image>> OpenImage(const std::string& path, bool read_only);

}  // namespace kvmbus::virtdev
