// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx_merge.h"

#include <algorithm>

#include "virtdev/disk/borrowed_file.h"
#include "virtdev/disk/image_io.h"
#include "virtdev/disk/vhdx_relink.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;
using Kind = ImageExtent::Kind;

/// One identity that the parent has, and one that it will have.
Result<void> Announce(BlockFile& child, const vmm::Guid& now, const vmm::Guid& next) {
  const vhdx::VhdxFile vhdx = TRY(vhdx::OpenVhdxFile(std::make_unique<BorrowedFile>(child), false));
  ParentReference reference = vhdx.disk.parent;
  reference.linkage = {now, next};
  return vhdx::ReplaceParentLocator(vhdx, reference);
}

Result<void> CheckPair(const Image& child, const Image& parent) {
  if (child.parent() == nullptr)
    return Error(Code::kInvalidArgument, "it is no differencing disk: there is nothing to merge");
  const auto& linkage = child.parent()->linkage;
  if (std::find(linkage.begin(), linkage.end(), parent.identity()) == linkage.end())
    return Error(Code::kFailedPrecondition,
                 "its parent is not what it was made on: link the right one with 'vmctl disk "
                 "reparent'");
  const DiskInfo &a = child.info(), &b = parent.info();
  if (a.size_bytes != b.size_bytes || a.logical_sector_bytes != b.logical_sector_bytes)
    return MakeError(Code::kFailedPrecondition,
                     "it has {} bytes in sectors of {}, its parent {} in sectors of {}: they must "
                     "be equal",
                     a.size_bytes, a.logical_sector_bytes, b.size_bytes, b.logical_sector_bytes);
  return {};
}

/// What the child has of a range; its own zeroes hide what the parent has.
Result<void> CopyRange(Image& child, uint64_t offset, uint64_t length, Image& parent) {
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

}  // namespace

Result<void> MergeVhdx(BlockFile& child_file, std::unique_ptr<BlockFile> parent_file,
                       const Progress& progress) {
  const vmm::Guid next = vmm::Guid::Random();
  auto parent = TRY_CTX(OpenVhdxImage(std::move(parent_file), false, next), "its parent");
  auto child = TRY(OpenVhdxImage(std::make_unique<BorrowedFile>(child_file), true));
  TRY_VOID(CheckPair(*child, *parent));
  child.reset();
  TRY_VOID_CTX(Announce(child_file, parent->identity(), next), "announcing the merge");
  child = TRY(OpenVhdxImage(std::make_unique<BorrowedFile>(child_file), true));
  constexpr uint64_t kPiece = 1u << 20;
  const uint64_t total = child->info().size_bytes;
  for (uint64_t at = 0; at < total; at += kPiece) {
    const uint64_t length = std::min(kPiece, total - at);
    TRY_VOID(CopyRange(*child, at, length, *parent));
    if (parent->WantsFlush()) TRY_VOID(parent->Flush());
    if (progress && !progress(at + length, total)) {
      TRY_VOID(parent->Close());
      return Error(Code::kCancelled, "cancelled; the chain is whole, and can be merged again");
    }
  }
  return parent->Close();
}

}  // namespace kvmbus::virtdev
