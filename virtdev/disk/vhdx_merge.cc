// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx_merge.h"

#include "virtdev/disk/borrowed_file.h"
#include "virtdev/disk/image_merge.h"
#include "virtdev/disk/vhdx_relink.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Result;

/// One identity that the parent has, and one that it will have.
Result<void> Announce(BlockFile& child, const vmm::Guid& now, const vmm::Guid& next) {
  const vhdx::VhdxFile vhdx = TRY(vhdx::OpenVhdxFile(std::make_unique<BorrowedFile>(child), false));
  ParentReference reference = vhdx.disk.parent;
  reference.linkage = {now, next};
  return vhdx::ReplaceParentLocator(vhdx, reference);
}

}  // namespace

Result<void> MergeVhdx(BlockFile& child_file, std::unique_ptr<BlockFile> parent_file,
                       const Progress& progress) {
  const vmm::Guid next = vmm::Guid::Random();
  auto parent = TRY_CTX(OpenVhdxImage(std::move(parent_file), false, next), "its parent");
  auto child = TRY(OpenVhdxImage(std::make_unique<BorrowedFile>(child_file), true));
  TRY_VOID(CheckMergePair(*child, *parent));
  child.reset();
  TRY_VOID_CTX(Announce(child_file, parent->identity(), next), "announcing the merge");
  child = TRY(OpenVhdxImage(std::make_unique<BorrowedFile>(child_file), true));
  return MergeLayer(*child, *parent, progress);
}

}  // namespace kvmbus::virtdev
