// SPDX-License-Identifier: Apache-2.0
// Opening a chain: from the top to the base, each parent found, locked and compared with what its
// child says of it.
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "virtdev/disk/chain/chain.h"
#include "virtdev/disk/chain/parent_path.h"
#include "virtdev/disk/image_format.h"

namespace kvmbus::virtdev {
namespace {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

using FileId = std::pair<dev_t, ino_t>;

Result<FileId> IdOf(const std::string& path) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) < 0)
    return vmm::Error::FromErrno(errno, fmt::format("'{}'", path));
  if (!S_ISREG(status.st_mode))
    return MakeError(Code::kInvalidArgument, "'{}' is not a file: no parent of an image", path);
  return FileId{status.st_dev, status.st_ino};
}

Result<void> CheckLink(const std::string& child_path, const Image& child, const std::string& path,
                       const Image& parent) {
  const std::vector<vmm::Guid>& linkage = child.parent()->linkage;
  const vmm::Guid identity = parent.identity();
  if (identity.IsZero() || std::find(linkage.begin(), linkage.end(), identity) == linkage.end())
    return MakeError(Code::kFailedPrecondition,
                     "'{}' was made on another image, or on an older content of it, than '{}' is: "
                     "it expects {} and finds {}; put the right parent there, or if you are sure "
                     "that the content fits, link them with 'vmctl disk reparent'",
                     child_path, path, linkage.front().ToString(), identity.ToString());
  const uint32_t sectors = parent.info().logical_sector_bytes;
  if (sectors != child.info().logical_sector_bytes)
    return MakeError(Code::kDataLoss,
                     "'{}' has logical sectors of {} bytes and its parent '{}' of {}: one of them "
                     "is damaged",
                     child_path, child.info().logical_sector_bytes, path, sectors);
  return {};
}

class ChainOpener {
 public:
  Result<std::unique_ptr<Chain>> Open(const std::string& path, bool read_only,
                                      const std::vector<std::string>& roots) {
    layers_.push_back(TRY(OpenImage(path, read_only)));
    paths_.push_back(path);
    if (layers_.front()->parent() != nullptr) {
      roots_ = TRY(ParentRoots(path, roots));
      seen_.insert(TRY(IdOf(path)));
    }
    while (layers_.back()->parent() != nullptr) TRY_VOID(OpenParent());
    return std::make_unique<Chain>(std::move(layers_), std::move(paths_));
  }

 private:
  Result<void> OpenParent() {
    const std::string child = paths_.back();
    if (layers_.size() == Chain::kMaxLayers)
      return MakeError(Code::kOutOfRange,
                       "'{}' has more than {} images below it: merge some of them", paths_.front(),
                       Chain::kMaxLayers - 1);
    const std::string path = TRY(FindParent(child, *layers_.back()->parent(), roots_));
    // Before it is opened: our own lock would be in the way.
    const FileId id = TRY(IdOf(path));
    if (!seen_.insert(id).second)
      return MakeError(Code::kDataLoss,
                       "'{}' has '{}' as its parent, which is above it in the chain: link it to "
                       "the right one with 'vmctl disk reparent'",
                       child, path);
    auto parent = TRY_CTX(OpenImage(path, true), "opening the parent of '{}'", child);
    TRY_VOID(CheckLink(child, *layers_.back(), path, *parent));
    layers_.push_back(std::move(parent));
    paths_.push_back(path);
    return {};
  }

  std::vector<std::unique_ptr<Image>> layers_;
  std::vector<std::string> paths_, roots_;
  std::set<FileId> seen_;
};

}  // namespace

Result<std::unique_ptr<Chain>> OpenChain(const std::string& path, bool read_only,
                                         const std::vector<std::string>& roots) {
  return ChainOpener().Open(path, read_only, roots);
}

}  // namespace kvmbus::virtdev
