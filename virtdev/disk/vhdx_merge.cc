// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/vhdx_merge.h"

#include "virtdev/disk/borrowed_file.h"
#include "virtdev/disk/image_merge.h"

namespace kvmbus::virtdev {

using vmm::Result;

Result<void> AnnounceMerge(Image& child, const Image& parent, const vmm::Guid& next) {
  ParentReference reference = *child.parent();
  reference.linkage = {parent.identity(), next};
  return child.Relink(reference);
}

Result<void> MergeVhdx(BlockFile& child_file, std::unique_ptr<BlockFile> parent_file,
                       const Progress& progress) {
  const vmm::Guid next = vmm::Guid::Random();
  auto parent = TRY_CTX(OpenVhdxImage(std::move(parent_file), false, next), "its parent");
  auto child = TRY(OpenVhdxImage(std::make_unique<BorrowedFile>(child_file), false));
  TRY_VOID(CheckMergePair(*child, *parent));
  TRY_VOID_CTX(AnnounceMerge(*child, *parent, next), "announcing the merge");
  TRY_VOID(child->Close());
  return MergeLayer(*child, *parent, progress);
}

}  // namespace kvmbus::virtdev
