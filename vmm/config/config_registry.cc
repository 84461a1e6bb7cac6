// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/config_registry.h"

#include <unistd.h>

#include "vmm/config/config_file.h"

namespace kvmbus::vmm {
namespace {

constexpr const char* kMachines = "Configurations/VirtualMachines";
constexpr const char* kUpgrades = "kvmbus/Upgrades";

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
  if (const Key* machines = tree->Find(kMachines)) {
    for (const Key& key : machines->children) {
      const auto* path = std::get_if<std::string>(&key.value);
      if (path != nullptr) state.machines.emplace(key.name, *path);
    }
  }
  if (const Key* upgrades = tree->Find(kUpgrades)) {
    for (const Key& key : upgrades->children) state.upgrades.insert(key.name);
  }
  state_ = std::move(state);
  return true;
}

Result<void> ConfigRegistry::Register(const std::string& id, const std::string& path) {
  State changed = state_;
  changed.machines[id] = path;
  return Store(std::move(changed));
}

Result<void> ConfigRegistry::Unregister(const std::string& id) {
  State changed = state_;
  changed.machines.erase(id);
  changed.upgrades.erase(id);
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
  Key& machines = tree.Make(kMachines);
  for (const auto& [id, path] : changed.machines) machines.children.push_back({id, path, {}});
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
