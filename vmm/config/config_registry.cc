// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/config_registry.h"

#include <unistd.h>

#include "vmm/config/config_file.h"

namespace kvmbus::vmm {
namespace {

constexpr const char* kMachines = "Configurations/VirtualMachines";
constexpr const char* kDeletions = "kvmbus/Deletions";
constexpr const char* kUpgrades = "kvmbus/Upgrades";

std::map<std::string, std::string> ReadPaths(const Key* node) {
  std::map<std::string, std::string> paths;
  if (node == nullptr) return paths;
  for (const Key& key : node->children) {
    const auto* path = std::get_if<std::string>(&key.value);
    if (path != nullptr) paths.emplace(key.name, *path);
  }
  return paths;
}

void WritePaths(const std::map<std::string, std::string>& paths, Key* node) {
  for (const auto& [id, path] : paths) node->children.push_back({id, path, {}});
}

}  // namespace

Result<bool> ConfigRegistry::Load() {
  if (::access(path_.c_str(), F_OK) < 0 && errno == ENOENT) return false;
  const auto tree = ReadConfigTree(path_);
  if (!tree.ok()) {
    Error error = tree.error();
    return std::move(error).WithContext(
        "reading the list of virtual machines (move the file away, and those of the default folder "
        "are listed anew)");
  }
  State state;
  state.machines = ReadPaths(tree->Find(kMachines));
  state.deletions = ReadPaths(tree->Find(kDeletions));
  if (const Key* upgrades = tree->Find(kUpgrades)) {
    for (const Key& key : upgrades->children) state.upgrades.insert(key.name);
  }
  state_ = std::move(state);
  return true;
}

Result<void> ConfigRegistry::Register(const std::string& id, const std::string& path) {
  return RegisterAll({{id, path}});
}

Result<void> ConfigRegistry::RegisterAll(const std::map<std::string, std::string>& machines) {
  State changed = state_;
  for (const auto& [id, path] : machines) changed.machines[id] = path;
  return Store(std::move(changed));
}

Result<void> ConfigRegistry::BeginDeletion(const std::string& id) {
  State changed = state_;
  if (auto node = changed.machines.extract(id)) changed.deletions.insert(std::move(node));
  changed.upgrades.erase(id);
  return Store(std::move(changed));
}

Result<void> ConfigRegistry::EndDeletion(const std::string& id) {
  State changed = state_;
  changed.deletions.erase(id);
  return Store(std::move(changed));
}

Result<void> ConfigRegistry::BeginUpgrade(const std::string& id) {
  State changed = state_;
  changed.upgrades.insert(id);
  return Store(std::move(changed));
}

Result<void> ConfigRegistry::EndUpgrade(const std::string& id) {
  State changed = state_;
  changed.upgrades.erase(id);
  return Store(std::move(changed));
}

Result<void> ConfigRegistry::Store(State changed) {
  Key tree;
  WritePaths(changed.machines, &tree.Make(kMachines));
  if (!changed.deletions.empty()) WritePaths(changed.deletions, &tree.Make(kDeletions));
  if (!changed.upgrades.empty()) {
    Key& upgrades = tree.Make(kUpgrades);
    for (const std::string& id : changed.upgrades) upgrades.children.push_back({id, true, {}});
  }
  const std::string content = TRY(FormatContainer(tree));
  TRY_VOID_CTX(files_.Replace(path_, content), "writing the list of virtual machines");
  state_ = std::move(changed);
  return {};
}

}  // namespace kvmbus::vmm
