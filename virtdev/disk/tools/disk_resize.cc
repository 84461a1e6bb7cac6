// SPDX-License-Identifier: Apache-2.0
// Another size for the disk in an image file.
#include "virtdev/disk/borrowed_file.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/tools/partition_table.h"
#include "virtdev/disk/vhd/vhd_resize.h"
#include "virtdev/disk/vhdx/vhdx_grow.h"
#include "virtdev/disk/vhdx/vhdx_shrink.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

Result<void> CheckSize(const DiskInfo& info, uint64_t size_bytes) {
  if (size_bytes != 0 && size_bytes % info.logical_sector_bytes == 0) return {};
  return MakeError(Code::kInvalidArgument, "a disk of {} bytes: a multiple of {} above 0 is needed",
                   size_bytes, info.logical_sector_bytes);
}

/// Nothing that somebody needs lies behind the new end.
Result<void> CheckCut(const PartitionTable& table, uint64_t size_bytes, bool force) {
  if (table.kind == PartitionTable::Kind::kNone && !force)
    return MakeError(Code::kFailedPrecondition,
                     "{}, so that nobody knows what the disk's end holds; if it can go, say "
                     "--force",
                     table.flaw);
  if (size_bytes < table.smallest_bytes)
    return MakeError(Code::kFailedPrecondition,
                     "{} bytes would cut its partitions: {} is the smallest size; shrink or delete "
                     "the last partition in the guest first",
                     size_bytes, table.smallest_bytes);
  return {};
}

/// The disk is fit to be cut: a GPT keeps its second copy.
Result<void> PrepareCut(BlockFile& file, ImageFormat format, uint64_t size_bytes, bool force) {
  const auto open = [&](bool read_only) {
    return OpenImageFile(std::make_unique<BorrowedFile>(file), format, read_only);
  };
  auto image = TRY(open(true));
  if (image->parent() != nullptr)
    return vmm::Error(Code::kInvalidArgument,
                      "a differencing disk does not shrink: merge it into its parent first");
  const PartitionTable table = TRY(ReadPartitionTable(*image));
  TRY_VOID(CheckCut(table, size_bytes, force));
  if (table.kind != PartitionTable::Kind::kGpt) return {};
  image.reset();
  image = TRY(open(false));
  TRY_VOID_CTX(FitGpt(*image, size_bytes), "moving the GPT's second copy");
  return image->Close();
}

Result<void> ResizeRaw(BlockFile& file, uint64_t size_bytes) {
  TRY_VOID(file.Resize(size_bytes));
  return file.Flush();
}

Result<void> ResizeVhdx(std::unique_ptr<BlockFile> file, uint64_t size_bytes) {
  const vhdx::VhdxFile vhdx = TRY(vhdx::OpenVhdxFile(std::move(file), false));
  return size_bytes < vhdx.disk.disk_bytes ? vhdx::ShrinkDisk(vhdx, size_bytes)
                                           : vhdx::GrowDisk(vhdx, size_bytes);
}

Result<void> Resize(std::unique_ptr<BlockFile> file, ImageFormat format, uint64_t size_bytes,
                    bool force) {
  if (file->is_device())
    return vmm::Error(Code::kInvalidArgument, "it is a block device: the host gives it its size");
  const DiskInfo info =
      TRY(OpenImageFile(std::make_unique<BorrowedFile>(*file), format, true))->info();
  TRY_VOID(CheckSize(info, size_bytes));
  if (size_bytes < info.size_bytes) TRY_VOID(PrepareCut(*file, format, size_bytes, force));
  switch (format) {
    case ImageFormat::kRaw:
      return ResizeRaw(*file, size_bytes);
    case ImageFormat::kVhdx:
      return ResizeVhdx(std::move(file), size_bytes);
    case ImageFormat::kVhd:
      return vhd::ResizeVhd(std::move(file), size_bytes);
  }
  return vmm::Error(Code::kInternal, "a format that nobody resizes");
}

}  // namespace

Result<void> ResizeDisk(const std::string& path, uint64_t size_bytes, bool force) {
  auto file = TRY(OpenBlockFile(path, false));
  const ImageFormat format = TRY(FormatOf(*file, path));
  TRY_VOID_CTX(Resize(std::move(file), format, size_bytes, force), "'{}'", path);
  return {};
}

}  // namespace kvmbus::virtdev
