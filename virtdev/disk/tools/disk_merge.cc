// SPDX-License-Identifier: Apache-2.0
// Merging an image file into its parent.
#include "virtdev/disk/chain/parent_path.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/tools/image_merge.h"
#include "vmm/os/file.h"

namespace kvmbus::virtdev {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

namespace {

/// The parent's file, found as any open of the chain would find it.
Result<std::string> ParentOf(const std::string& path) {
  const auto image = TRY(OpenImage(path, true));
  if (image->parent() == nullptr)
    return MakeError(Code::kInvalidArgument,
                     "'{}' is no differencing disk: there is nothing to merge", path);
  return FindParent(path, *image->parent(), TRY(ParentRoots(path, {})));
}

}  // namespace

Result<void> MergeDisk(const std::string& path, const Progress& progress) {
  const std::string parent_path = TRY(ParentOf(path));
  const auto child = TRY(OpenBlockFile(path, false));
  auto parent = TRY_CTX(OpenBlockFile(parent_path, false), "the parent of '{}'", path);
  const ImageFormat format = TRY(FormatOf(*child, path));
  if (TRY(FormatOf(*parent, parent_path)) != format)
    return MakeError(Code::kInvalidArgument, "'{}', the parent of '{}', has another format",
                     parent_path, path);
  TRY_VOID_CTX(MergeImageFiles(format, *child, std::move(parent), progress), "merging '{}'", path);
  // All of it is in the parent, and durable. What is left is a name.
  TRY_VOID_CTX(vmm::RemoveFile(path), "'{}' is merged, and not deleted", path);
  return {};
}

}  // namespace kvmbus::virtdev
