// SPDX-License-Identifier: Apache-2.0
// Merging an image file into its parent.
#include <unistd.h>

#include <cerrno>

#include "virtdev/disk/borrowed_file.h"
#include "virtdev/disk/disk_tools.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/image_merge.h"
#include "virtdev/disk/parent_path.h"
#include "virtdev/disk/vhdx_merge.h"

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

/// A VHD's identity does not change with its content: the chain holds what it held at any moment.
Result<void> MergeVhd(BlockFile& child_file, std::unique_ptr<BlockFile> parent_file,
                      const Progress& progress) {
  const auto child = TRY(OpenVhdImage(std::make_unique<BorrowedFile>(child_file), true));
  const auto parent = TRY_CTX(OpenVhdImage(std::move(parent_file), false), "its parent");
  TRY_VOID(CheckMergePair(*child, *parent));
  return MergeLayer(*child, *parent, progress);
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
  const auto merge = format == ImageFormat::kVhd ? MergeVhd : MergeVhdx;
  TRY_VOID_CTX(merge(*child, std::move(parent), progress), "merging '{}'", path);
  // All of it is in the parent, and durable. What is left is a name.
  if (::unlink(path.c_str()) < 0)
    return vmm::Error::FromErrno(errno, fmt::format("'{}' is merged, and not deleted", path));
  return {};
}

}  // namespace kvmbus::virtdev
