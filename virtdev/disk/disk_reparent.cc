// SPDX-License-Identifier: Apache-2.0
// Linking a differencing image to another parent.
#include <algorithm>

#include "virtdev/disk/chain.h"
#include "virtdev/disk/disk_tools.h"
#include "virtdev/disk/image_format.h"
#include "virtdev/disk/parent_path.h"
#include "virtdev/disk/vhdx_relink.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

Result<void> CheckNewParent(const std::string& path, const vhdx::DiskMetadata& disk,
                            const std::string& parent_path, const Image& parent,
                            bool ignore_mismatch) {
  if (parent.format() != "vhdx")
    return MakeError(Code::kInvalidArgument,
                     "'{}' is a {} image; the parent of a VHDX is a VHDX: make one of it with "
                     "'vmctl disk convert'",
                     parent_path, parent.format());
  if (parent.info().logical_sector_bytes != disk.logical_sector)
    return MakeError(Code::kInvalidArgument,
                     "'{}' has logical sectors of {} bytes and '{}' of {}: it cannot be its parent",
                     path, disk.logical_sector, parent_path, parent.info().logical_sector_bytes);
  const auto& linkage = disk.parent.linkage;
  const bool known = std::find(linkage.begin(), linkage.end(), parent.identity()) != linkage.end();
  if (!known && !ignore_mismatch)
    return MakeError(Code::kFailedPrecondition,
                     "'{}' was not made on what '{}' holds now: if you are sure that it fits, say "
                     "--ignore-id-mismatch",
                     path, parent_path);
  return {};
}

}  // namespace

Result<void> ReparentDisk(const std::string& path, const std::string& parent_path,
                          bool ignore_mismatch) {
  auto file = TRY(OpenBlockFile(path, false));
  if (TRY(FormatOf(*file, path)) != ImageFormat::kVhdx)
    return MakeError(Code::kUnimplemented,
                     "'{}' is not a VHDX file: only these are given another parent", path);
  const auto chain = TRY_CTX(OpenChain(parent_path, true), "the parent '{}'", parent_path);
  const vhdx::VhdxFile vhdx = TRY_CTX(vhdx::OpenVhdxFile(std::move(file), false), "'{}'", path);
  if (!vhdx.disk.has_parent)
    return MakeError(Code::kInvalidArgument, "'{}' is no differencing disk: it has no parent",
                     path);
  const Image& parent = chain->top();
  TRY_VOID(CheckNewParent(path, vhdx.disk, parent_path, parent, ignore_mismatch));
  ParentReference reference;
  reference.linkage = {parent.identity()};
  reference.paths = TRY(PathsToParent(path, parent_path));
  // What could not be opened afterwards is not written.
  const auto roots = TRY(ParentRoots(path, {}));
  TRY(FindParent(path, reference, roots));
  TRY_VOID_CTX(vhdx::ReplaceParentLocator(vhdx, reference), "'{}'", path);
  return {};
}

}  // namespace kvmbus::virtdev
