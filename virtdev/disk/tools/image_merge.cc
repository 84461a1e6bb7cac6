// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/tools/image_merge.h"

#include <algorithm>

#include "virtdev/disk/borrowed_file.h"
#include "virtdev/disk/tools/image_io.h"

namespace kvmbus::virtdev {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;
using Kind = ImageExtent::Kind;

Result<void> CheckMergePair(const Image& child, const Image& parent) {
  if (child.parent() == nullptr)
    return Error(Code::kInvalidArgument, "it is no differencing disk: there is nothing to merge");
  const auto& linkage = child.parent()->linkage;
  if (std::find(linkage.begin(), linkage.end(), parent.identity()) == linkage.end())
    return Error(Code::kFailedPrecondition,
                 "its parent is not what it was made on: link the right one with 'vmctl disk "
                 "reparent'");
  const DiskInfo &a = child.info(), &b = parent.info();
  if (a.size_bytes < b.size_bytes || a.logical_sector_bytes != b.logical_sector_bytes)
    return MakeError(
        Code::kFailedPrecondition,
        "it has {} bytes in sectors of {}, its parent {} in sectors of {}: the sectors "
        "must be equal, and the parent not the larger one",
        a.size_bytes, a.logical_sector_bytes, b.size_bytes, b.logical_sector_bytes);
  return {};
}

Result<std::unique_ptr<Image>> OpenForMerge(std::unique_ptr<BlockFile> file, ImageFormat format,
                                            const vmm::Guid& next) {
  if (format == ImageFormat::kVhdx) return OpenVhdxImage(std::move(file), false, next);
  return OpenImageFile(std::move(file), format, false);
}

Result<void> AnnounceMerge(Image& child, const Image& parent, const vmm::Guid& next) {
  if (!parent.identity_follows_content()) return {};
  ParentReference reference = *child.parent();
  reference.linkage = {parent.identity(), next};
  return child.Relink(reference);
}

Result<void> MergeRange(Image& child, uint64_t offset, uint64_t length, Image& parent) {
  std::vector<ImageExtent> extents;
  child.MapLayer(offset, length, &extents);
  std::vector<uint8_t> bytes;
  for (const ImageExtent& extent : extents) {
    if (extent.kind == Kind::kData) {
      bytes.resize(extent.length);
      TRY_VOID(extent.file->Read(bytes, extent.file_offset));
      TRY_VOID(WriteImage(parent, offset, bytes));
    } else if (extent.kind == Kind::kZero) {
      TRY_VOID(ZeroImage(parent, offset, extent.length));
    }
    offset += extent.length;
  }
  return {};
}

Result<void> MergeLayer(Image& child, Image& parent, const Progress& progress) {
  const uint64_t total = child.info().size_bytes;
  if (parent.info().size_bytes < total) TRY_VOID_CTX(parent.Grow(total), "its parent");
  for (uint64_t at = 0; at < total; at += kMergePiece) {
    const uint64_t length = std::min(kMergePiece, total - at);
    TRY_VOID(MergeRange(child, at, length, parent));
    if (parent.WantsFlush()) TRY_VOID(parent.Flush());
    if (progress && !progress(at + length, total)) {
      TRY_VOID(parent.Close());
      return Error(Code::kCancelled, "cancelled; the chain is whole, and can be merged again");
    }
  }
  return parent.Close();
}

Result<void> MergeImageFiles(ImageFormat format, BlockFile& child_file,
                             std::unique_ptr<BlockFile> parent_file, const Progress& progress) {
  const vmm::Guid next = vmm::Guid::Random();
  const auto parent = TRY_CTX(OpenForMerge(std::move(parent_file), format, next), "its parent");
  const auto child = TRY(OpenForMerge(std::make_unique<BorrowedFile>(child_file), format));
  TRY_VOID(CheckMergePair(*child, *parent));
  TRY_VOID_CTX(AnnounceMerge(*child, *parent, next), "announcing the merge");
  TRY_VOID(child->Close());
  return MergeLayer(*child, *parent, progress);
}

}  // namespace kvmbus::virtdev
