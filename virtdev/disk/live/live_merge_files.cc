// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "virtdev/disk/chain/parent_path.h"
#include "virtdev/disk/live/live_disk.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"

namespace kvmbus::virtdev {
namespace {

namespace fs = std::filesystem;
using vmm::Error;
using vmm::Result;

/// Without symbolic links.
Result<fs::path> Resolved(const std::string& path) {
  std::error_code error;
  fs::path whole = fs::canonical(path, error);
  if (error) return Error::FromErrno(error.value(), fmt::format("'{}'", path));
  return whole;
}

class HostMergeFiles final : public MergeFiles {
 public:
  Result<void> CheckNextTop(const Chain& chain) override {
    return CheckFindsLayers(chain.paths()[1], chain, 1);
  }
  Result<std::unique_ptr<BlockFile>> Reopen(const std::string& path, BlockFile& file) override {
    return ReopenForWriting(path, file);
  }
  void Share(BlockFile& from, BlockFile& to) override {
    const auto shared = ShareLock(from, to);
    if (!shared.ok()) spdlog::warn("sharing a lock: {}", shared.error().ToString());
  }
  Result<std::vector<ParentReference::Path>> PathsTo(const std::string& child,
                                                     const std::string& parent) override {
    return PathsToParent(child, parent);
  }
  Result<void> Redirect(const std::string& path, const std::string& to) override {
    const fs::path name = TRY(Resolved(path)), target = TRY(Resolved(to));
    const bool beside = name.parent_path() == target.parent_path();
    const std::string link = vmm::TemporaryName(name.string());
    ::unlink(link.c_str());
    if (::symlink(beside ? target.filename().c_str() : target.c_str(), link.c_str()) < 0)
      return Error::FromErrno(errno, fmt::format("creating '{}'", link));
    if (::rename(link.c_str(), name.c_str()) < 0) {
      Error error = Error::FromErrno(errno, fmt::format("replacing '{}'", name.string()));
      ::unlink(link.c_str());
      return error;
    }
    // The old file has no name any more: there is no way back.
    const auto synced = vmm::SyncFolder(name.parent_path().string());
    if (!synced.ok()) spdlog::error("'{}': {}", name.string(), synced.error().ToString());
    return {};
  }
  Result<void> Remove(const std::string& path) override {
    TRY_VOID_CTX(vmm::RemoveFile(path), "'{}' is merged, and not deleted", path);
    return {};
  }
};

}  // namespace

Result<void> CheckFindsLayers(const std::string& top, const Chain& chain, size_t layer) {
  const std::vector<std::string> roots = TRY(ParentRoots(top, {}));
  for (size_t i = layer; i + 1 < chain.layers().size(); ++i)
    TRY(FindParent(chain.paths()[i], *chain.layers()[i]->parent(), roots));
  return {};
}

std::unique_ptr<MergeFiles> MakeHostMergeFiles() { return std::make_unique<HostMergeFiles>(); }

}  // namespace kvmbus::virtdev
