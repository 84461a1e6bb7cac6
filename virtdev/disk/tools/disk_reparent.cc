// SPDX-License-Identifier: Apache-2.0
// Linking a differencing image to another parent.
#include <algorithm>

#include "virtdev/disk/borrowed_file.h"
#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/chain/parent_path.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/tools/disk_tools.h"
#include "virtdev/disk/vhd/vhd_relink.h"
#include "virtdev/disk/vhdx/vhdx_relink.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

Result<void> CheckNewParent(const std::string& path, const Image& child,
                            const std::string& parent_path, const Image& parent,
                            bool ignore_mismatch) {
  if (parent.format() != child.format())
    return MakeError(Code::kInvalidArgument,
                     "'{}' is a {} image; the parent of a {} is one of its format: make one of it "
                     "with 'vmctl disk convert'",
                     parent_path, parent.format(), child.format());
  const uint32_t sector = child.info().logical_sector_bytes;
  if (parent.info().logical_sector_bytes != sector)
    return MakeError(Code::kInvalidArgument,
                     "'{}' has logical sectors of {} bytes and '{}' of {}: it cannot be its parent",
                     path, sector, parent_path, parent.info().logical_sector_bytes);
  const auto& linkage = child.parent()->linkage;
  const bool known = std::find(linkage.begin(), linkage.end(), parent.identity()) != linkage.end();
  if (!known && !ignore_mismatch)
    return MakeError(Code::kFailedPrecondition,
                     "'{}' was not made on what '{}' holds now: if you are sure that it fits, say "
                     "--ignore-id-mismatch",
                     path, parent_path);
  return {};
}

Result<void> Relink(std::unique_ptr<BlockFile> file, ImageFormat format, uint64_t parent_bytes,
                    const ParentReference& reference) {
  if (format == ImageFormat::kVhd)
    return vhd::ReplaceVhdParent(std::move(file), VhdParentOf(reference, parent_bytes));
  return vhdx::ReplaceParentLocator(TRY(vhdx::OpenVhdxFile(std::move(file), false)), reference);
}

}  // namespace

Result<void> ReparentDisk(const std::string& path, const std::string& parent_path,
                          bool ignore_mismatch) {
  auto file = TRY(OpenBlockFile(path, false));
  const ImageFormat format = TRY(FormatOf(*file, path));
  const auto chain = TRY_CTX(OpenChain(parent_path, true), "the parent '{}'", parent_path);
  Image& parent = chain->top();
  {
    const auto child =
        TRY_CTX(OpenImageFile(std::make_unique<BorrowedFile>(*file), format, true), "'{}'", path);
    if (child->parent() == nullptr)
      return MakeError(Code::kInvalidArgument, "'{}' is no differencing disk: it has no parent",
                       path);
    TRY_VOID(CheckNewParent(path, *child, parent_path, parent, ignore_mismatch));
  }
  ParentReference reference;
  reference.linkage = {parent.identity()};
  reference.modified = ModifiedOf(parent.file());
  reference.paths = TRY(PathsToParent(path, parent_path));
  // What could not be opened afterwards is not written.
  const auto roots = TRY(ParentRoots(path, {}));
  TRY(FindParent(path, reference, roots));
  TRY_VOID_CTX(Relink(std::move(file), format, parent.info().size_bytes, reference), "'{}'", path);
  return {};
}

}  // namespace kvmbus::virtdev
