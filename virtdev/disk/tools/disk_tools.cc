// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/tools/disk_tools.h"

#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/chain/parent_path.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/tools/partition_table.h"
#include "virtdev/disk/vhd/vhd_bat.h"
#include "virtdev/disk/vhdx/vhdx_file.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Result;

Result<void> DescribeVhdx(std::unique_ptr<BlockFile> file, DiskDescription* description) {
  const vhdx::VhdxFile vhdx = TRY(vhdx::OpenVhdxFile(std::move(file), true));
  const vhdx::DiskMetadata& disk = vhdx.disk;
  description->type = disk.has_parent ? "differencing" : disk.fixed ? "fixed" : "dynamic";
  description->size_bytes = disk.disk_bytes;
  description->block_bytes = disk.block_bytes;
  description->logical_sector = disk.logical_sector;
  description->physical_sector = disk.physical_sector;
  description->blocks = disk.blocks();
  description->disk_id = disk.disk_id;
  description->clean = !vhdx.was_dirty;
  if (disk.has_parent) description->parent = disk.parent.paths.front().text;
  std::vector<vhdx::FileRange> used;
  description->allocated_blocks = TRY(vhdx::ReadBlockTable(vhdx, &used)).CountPresent();
  return {};
}

Result<void> DescribeVhd(std::unique_ptr<BlockFile> file, DiskDescription* description) {
  const vhd::VhdFile vhd = TRY(vhd::OpenVhdFile(std::move(file)));
  description->type = vhd.fixed() ? "fixed" : vhd.differencing() ? "differencing" : "dynamic";
  description->size_bytes = vhd.disk_bytes();
  description->disk_id = vhd.footer.unique_id;
  description->clean = vhd.footer_is_sound && vhd.copy_is_sound;
  if (vhd.fixed()) return {};
  description->block_bytes = vhd.header.block_size;
  description->blocks = vhd.blocks();
  description->allocated_blocks = TRY(vhd::BlockTable::Read(vhd)).CountPresent();
  if (vhd.differencing()) description->parent = vhd.parent.paths.front().text;
  return {};
}

void DescribeChain(const std::string& path, DiskDescription* description) {
  const auto chain = OpenChain(path, true);
  if (!chain.ok()) {
    description->chain_error = chain.error().ToString();
    return;
  }
  description->chain.assign((*chain)->paths().begin() + 1, (*chain)->paths().end());
}

void DescribeSmallest(const std::string& path, DiskDescription* description) {
  const auto image = OpenImage(path, true);
  if (!image.ok()) return;
  const auto table = ReadPartitionTable(**image);
  if (table.ok()) description->smallest_bytes = table->smallest_bytes;
}

}  // namespace

Result<DiskDescription> DescribeDisk(const std::string& path) {
  auto file = TRY(OpenBlockFile(path, true));
  DiskDescription description;
  description.file_bytes = TRY(file->Size());
  switch (TRY(FormatOf(*file, path))) {
    case ImageFormat::kVhd:
      description.format = "vhd";
      TRY_VOID_CTX(DescribeVhd(std::move(file), &description), "'{}'", path);
      break;
    case ImageFormat::kRaw:
      description.format = "raw";
      description.size_bytes = description.file_bytes;
      break;
    case ImageFormat::kVhdx:
      description.format = "vhdx";
      TRY_VOID_CTX(DescribeVhdx(std::move(file), &description), "'{}'", path);
      break;
  }
  if (description.type == "differencing")
    DescribeChain(path, &description);
  else
    DescribeSmallest(path, &description);
  return description;
}

Result<std::string> ParentOfDisk(const std::string& path) {
  auto file = TRY(PeekBlockFile(path));
  const ImageFormat format = TRY(FormatOf(*file, path));
  if (format == ImageFormat::kRaw) return std::string();
  const auto image = TRY_CTX(OpenImageFile(std::move(file), format, true), "'{}'", path);
  if (image->parent() == nullptr) return std::string();
  const auto roots = TRY(ParentRoots(path, {}));
  return FindParent(path, *image->parent(), roots);
}

}  // namespace kvmbus::virtdev
