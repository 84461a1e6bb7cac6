// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <filesystem>

#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/disk_io.h"
#include "virtdev/disk/image_format.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"

namespace kvmbus::virtdev {
namespace {

/// A raw image has no id of its own: the same path gives the same one.
vmm::Guid IdOfPath(const std::string& path) {
  std::error_code ignored;
  const std::string whole = std::filesystem::weakly_canonical(path, ignored).string();
  vmm::Guid id;
  uint64_t hash[2] = {0xcbf29ce484222325, 0x84222325cbf29ce4};  // FNV-1a, two of them
  for (const char c : whole) {
    for (uint64_t& value : hash) value = (value ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  }
  std::memcpy(id.bytes.data(), hash, sizeof(hash));
  return id;
}

}  // namespace

vmm::Result<std::unique_ptr<Image>> OpenImageFile(std::unique_ptr<BlockFile> file,
                                                  ImageFormat format, bool read_only,
                                                  const vmm::Guid& raw_id) {
  switch (format) {
    case ImageFormat::kRaw:
      return OpenRawImage(std::move(file), read_only, raw_id);
    case ImageFormat::kVhdx:
      return OpenVhdxImage(std::move(file), read_only);
    case ImageFormat::kVhd:
      return OpenVhdImage(std::move(file), read_only);
  }
  return vmm::Error(vmm::Code::kInternal, "a format that nobody opens");
}

vmm::Result<std::unique_ptr<Image>> OpenImage(const std::string& path, bool read_only) {
  auto file = TRY(OpenBlockFile(path, read_only));
  const ImageFormat format = TRY(FormatOf(*file, path));
  auto image = OpenImageFile(std::move(file), format, read_only, IdOfPath(path));
  if (!image.ok()) return std::move(image.error()).WithContext(fmt::format("'{}'", path));
  return image;
}

void ApplyCaching(Image& image, DiskCaching caching, const std::string& path) {
  if (caching == DiskCaching::kBuffered) return;
  // The blocks of a dynamic VHD may lie on odd sectors: file systems take direct writes there one
  // by one.
  const bool is_odd = image.format() == "vhd" && image.info().can_unmap;
  const vmm::Result<void> direct =
      is_odd ? vmm::Error(vmm::Code::kUnimplemented, "it is a dynamic VHD")
             : image.file().GoDirect(image.info().logical_sector_bytes);
  if (!direct.ok())
    spdlog::info("disk '{}' uses the page cache: {}", path, direct.error().ToString());
}

DiskCaching CachingOf(Image& image) {
  return image.file().alignment().is_none() ? DiskCaching::kBuffered : DiskCaching::kDirect;
}

vmm::Result<std::unique_ptr<DiskIo>> OpenDisk(const std::string& path,
                                              const DiskOpenOptions& options) {
  auto chain = TRY(OpenChain(path, options.read_only, options.roots));
  ApplyCaching(chain->top(), options.caching, path);
  // Nobody else writes at its name: a live merge left what is there when its host lost power.
  if (!options.read_only) vmm::RemoveUnfinishedOf(vmm::RealPath(path).value_or(path));
  return MakeChainDisk(std::move(chain), options.force_threads);
}

}  // namespace kvmbus::virtdev
