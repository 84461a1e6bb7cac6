// SPDX-License-Identifier: Apache-2.0
#include "vmm/checkpoint/checkpoint_tree.h"

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <functional>

#include "vmm/guid/guid.h"
#include "vmm/os/clock.h"
#include "vmm/os/file.h"
#include "vmm/text/letter_case.h"
#include "vmm/text/utf8.h"

namespace kvmbus::vmm {
namespace {

constexpr size_t kGuidChars = 36;

/// Of many paths few have the name of the file, or are links.
bool MayLeadTo(const std::string& file, const std::string& path) {
  if (std::filesystem::path(file).filename() == std::filesystem::path(path).filename()) return true;
  std::error_code ignored;
  return std::filesystem::is_symlink(file, ignored);
}

/// "web_<GUID>"
bool EndsInGuid(const std::string& stem) {
  return stem.size() > kGuidChars + 1 && stem[stem.size() - kGuidChars - 1] == '_' &&
         Guid::Parse(stem.substr(stem.size() - kGuidChars)).has_value();
}

std::string ExtensionOf(const std::filesystem::path& path) {
  return LowerCase(path.extension().string());
}

std::vector<std::string> ChildrenOf(const CheckpointMap& checkpoints, const std::string& parent) {
  std::vector<std::string> children;
  for (const auto& [id, vm] : checkpoints) {
    const std::string& above = vm.checkpoint().parent();
    if (above == parent || (parent.empty() && checkpoints.count(above) == 0))
      children.push_back(id);
  }
  std::stable_sort(children.begin(), children.end(), [&](const auto& a, const auto& b) {
    return checkpoints.at(a).checkpoint().created_filetime() <
           checkpoints.at(b).checkpoint().created_filetime();
  });
  return children;
}

}  // namespace

Result<std::string> FindCheckpoint(const CheckpointMap& checkpoints,
                                   const std::string& id_or_name) {
  const std::string upper = UpperCase(id_or_name);
  if (checkpoints.count(upper) != 0) return upper;
  std::string found;
  for (const auto& [id, vm] : checkpoints) {
    if (vm.checkpoint().name() != id_or_name) continue;
    if (!found.empty())
      return MakeError(Code::kFailedPrecondition, "several checkpoints are named '{}': use the id",
                       id_or_name);
    found = id;
  }
  if (found.empty())
    return MakeError(Code::kNotFound,
                     "there is no checkpoint '{}'; 'vmctl checkpoint list' shows those that are",
                     id_or_name);
  return found;
}

std::vector<std::string> SubtreeOf(const CheckpointMap& checkpoints, const std::string& id) {
  // Files may be hostile: a cycle of parents ends where it began.
  std::vector<std::string> found = {id};
  for (size_t i = 0; i < found.size(); ++i) {
    for (const auto& [child, vm] : checkpoints) {
      if (vm.checkpoint().parent() == found[i] &&
          std::find(found.begin(), found.end(), child) == found.end())
        found.push_back(child);
    }
  }
  std::reverse(found.begin(), found.end());
  return found;
}

std::vector<std::pair<std::string, size_t>> InTreeOrder(const CheckpointMap& checkpoints) {
  std::vector<std::pair<std::string, size_t>> order;
  const std::function<void(const std::string&, size_t)> add = [&](const std::string& parent,
                                                                  size_t depth) {
    if (depth > checkpoints.size()) return;
    for (const std::string& child : ChildrenOf(checkpoints, parent)) {
      order.emplace_back(child, depth);
      add(child, depth + 1);
    }
  };
  add("", 0);
  return order;
}

Result<void> CheckNewCheckpoint(const CheckpointMap& checkpoints, const std::string& name) {
  if (checkpoints.size() >= kMaxCheckpoints)
    return MakeError(Code::kResourceExhausted,
                     "the virtual machine has {} checkpoints, the most that it may have: delete "
                     "some of them",
                     checkpoints.size());
  if (name.empty() || name.size() > kMaxCheckpointNameBytes || !IsPrintable(name))
    return MakeError(Code::kInvalidArgument,
                     "a checkpoint's name has 1 to {} bytes of UTF-8, without control characters",
                     kMaxCheckpointNameBytes);
  return {};
}

std::string DefaultCheckpointName(const std::string& vm_name, uint64_t created_filetime) {
  const auto seconds = static_cast<time_t>(RealtimeOfFiletime(created_filetime) / 1'000'000'000);
  struct tm local = {};
  ::localtime_r(&seconds, &local);
  char text[64];
  std::strftime(text, sizeof(text), " - (%m/%d/%Y - %I:%M:%S %p)", &local);
  return TruncateUtf8(vm_name, kMaxCheckpointNameBytes - std::string_view(text).size()) + text;
}

bool IsWritten(const config::Disk& disk) {
  return disk.kind() == config::HARD_DISK && !disk.read_only();
}

bool WritesTo(const config::Vm& vm, const std::string& path) {
  const auto is_it = [&path](const config::Disk& disk) {
    if (!IsWritten(disk)) return false;
    if (disk.path() == path) return true;
    return MayLeadTo(disk.path(), path) && RealPath(disk.path()).value_or("") == path;
  };
  return std::any_of(vm.disks().begin(), vm.disks().end(), is_it);
}

std::string NewLeafPath(const std::string& disk) {
  const std::filesystem::path path(disk);
  std::string stem = path.stem().string();
  // A leaf of a leaf has the base's name too.
  if (EndsInGuid(stem)) stem.resize(stem.size() - kGuidChars - 1);
  const std::string extension = ExtensionOf(path);
  const bool vhd = extension == ".vhd" || extension == ".avhd";
  return (path.parent_path() / fmt::format("{}_{}{}", stem, UpperCase(Guid::Random().ToString()),
                                           vhd ? ".avhd" : ".avhdx"))
      .string();
}

bool IsLeafPath(const std::string& disk) {
  const std::filesystem::path path(disk);
  const std::string extension = ExtensionOf(path);
  return (extension == ".avhdx" || extension == ".avhd") && EndsInGuid(path.stem().string());
}

}  // namespace kvmbus::vmm
