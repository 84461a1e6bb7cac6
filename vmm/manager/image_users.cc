// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/image_users.h"

#include <algorithm>
#include <map>

#include "vmm/os/file.h"

namespace kvmbus::vmm {
namespace {

constexpr size_t kMaxDepth = 64;

std::string Real(const std::string& path) { return RealPath(path).value_or(path); }

/// Remembers what it has read: disks share their parents.
class Parents {
 public:
  explicit Parents(DiskFiles& files) : files_(files) {}

  /// "": none, or it cannot be read.
  const std::string& Of(const std::string& file) {
    const auto [at, is_new] = parents_.try_emplace(file);
    if (is_new) {
      const auto parent = files_.ParentOf(file);
      if (parent.ok() && !parent->empty()) at->second = Real(*parent);
    }
    return at->second;
  }

  /// The image, and all that it stands on.
  std::vector<std::string> ChainOf(const std::string& path) {
    std::vector<std::string> chain;
    for (std::string file = Real(path); !file.empty() && chain.size() < kMaxDepth; file = Of(file))
      chain.push_back(file);
    return chain;
  }

 private:
  DiskFiles& files_;
  std::map<std::string, std::string> parents_;
};

bool Has(const std::vector<std::string>& chain, const std::string& file) {
  return std::find(chain.begin(), chain.end(), file) != chain.end();
}

}  // namespace

std::vector<ImageUser> ImageUsersOf(const Inventory& inventory) {
  std::vector<ImageUser> users;
  for (const VmView& view : inventory.List()) {
    const std::string& name = view.config.name();
    users.push_back({view.config, name, false, view.status.pid() != 0});
    for (const auto& [id, checkpoint] : inventory.Checkpoints(view.config.id()))
      users.push_back({checkpoint, name, true, false});
  }
  return users;
}

Result<void> CheckMerge(const std::string& path, bool offline, const std::vector<ImageUser>& users,
                        DiskFiles& files) {
  Parents parents(files);
  const std::string image = Real(path), parent = parents.Of(image);
  if (parent.empty()) return {};  // what merges it says so
  for (const ImageUser& user : users) {
    for (const config::Disk& disk : user.config.disks()) {
      if (disk.kind() != config::HARD_DISK || disk.path().empty()) continue;
      const std::vector<std::string> chain = parents.ChainOf(disk.path());
      if (!Has(chain, parent)) continue;
      if (user.is_checkpoint)
        return MakeError(Code::kFailedPrecondition,
                         "checkpoint '{}' of '{}' stands on '{}', which the merge would write to: "
                         "delete it ('vmctl checkpoint delete'), and vmmd merges what it leaves",
                         user.config.checkpoint().name(), user.machine, parent);
      if (!Has(chain, image) && chain.front() != parent)
        return MakeError(Code::kFailedPrecondition,
                         "disk '{}' of '{}' stands on '{}' too, which the merge would write to",
                         disk.path(), user.machine, parent);
      if (offline && !user.runs && Has(chain, image) && chain.front() != image)
        return MakeError(Code::kFailedPrecondition,
                         "disk '{}' of '{}' stands on '{}', and would not find it: merge it while "
                         "that runs, or merge '{}' first",
                         disk.path(), user.machine, path, chain.front());
    }
  }
  return {};
}

}  // namespace kvmbus::vmm
