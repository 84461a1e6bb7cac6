// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/config_upgrade.h"

#include <dirent.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "vmm/config/config_file.h"
#include "vmm/config/vm_files.h"
#include "vmm/config/vm_tree.h"
#include "vmm/config/xml_tree.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"
#include "vmm/text/letter_case.h"

namespace kvmbus::vmm {
namespace {

config::Vm Upgraded(config::Vm vm) {
  vm.set_version(kVersion62);
  vm.set_saved(false);
  return vm;
}

/// Whether a file that cannot be read has the machine's id somewhere, in UTF-16 or not.
bool Mentions(const std::string& path, const std::string& id) {
  const auto file = OpenRegularFile(path);
  if (!file.ok()) return false;
  std::string text = ReadWholeFile(NameOfFd(file->get()), kMaxXmlBytes).value_or("");
  std::erase(text, '\0');
  return UpperCase(text).find(id) != std::string::npos;
}

/// Whether it is the parent of one of these.
bool IsParent(const std::string& checkpoint, const std::vector<ConfigFile>& files) {
  return std::any_of(files.begin(), files.end(), [&checkpoint](const ConfigFile& file) {
    const config::Vm& vm = file.vm;
    return (vm.has_checkpoint() ? vm.checkpoint().parent() : vm.parent_checkpoint()) == checkpoint;
  });
}

/// The machine's file and those of its checkpoints, of version 5.0. Others' checkpoints may lie
/// there too, and be damaged.
Result<std::vector<ConfigFile>> OldFiles(const config::Vm& vm) {
  std::vector<ConfigFile> old;
  std::map<std::string, Error> damaged;
  for (const std::string& path : ConfigFilesIn(CheckpointsFolderOf(vm))) {
    if (!path.ends_with(kXmlSuffix)) continue;
    auto file = ReadConfigFile(path);
    if (!file.ok())
      damaged.emplace(path, std::move(file.error()));
    else if (file->vm.id() == vm.id())
      old.push_back(std::move(*file));
  }
  config::Vm machine = vm;
  machine.set_version(kVersion50);
  if (FileExists(ConfigFileOf(machine))) old.push_back(TRY(ReadConfigFile(ConfigFileOf(machine))));
  for (auto& [path, error] : damaged) {
    const std::string checkpoint = std::filesystem::path(path).stem().string();
    if (IsParent(checkpoint, old) || Mentions(path, vm.id())) return std::move(error);
  }
  return old;
}

Result<void> RemoveAll(FileOperations& files, const config::Vm& vm) {
  TRY_VOID(files.Remove(MemoryFileOf(vm)));
  TRY_VOID(files.Remove(StateFileOf(vm)));
  return files.Remove(ConfigFileOf(vm));
}

/// By where the machine's entry leads: to the new file, and the old ones go, or to the old one.
Result<void> Settle(FileOperations& files, ConfigRegistry& registry, const std::string& id) {
  const auto entry = registry.machines().find(id);
  if (entry == registry.machines().end()) return registry.EndUpgrade(id);
  const bool is_done = entry->second.ends_with(kVmcxSuffix);
  config::Vm vm;
  vm.set_id(id);
  vm.set_folder(std::filesystem::path(entry->second).parent_path().parent_path().string());
  for (const ConfigFile& old : TRY(OldFiles(vm)))
    TRY_VOID(RemoveAll(files, is_done ? old.vm : Upgraded(old.vm)));
  return registry.EndUpgrade(id);
}

Result<void> CheckRoom(const std::vector<ConfigFile>& old) {
  for (const ConfigFile& file : old) {
    const config::Vm vm = Upgraded(file.vm);
    for (const std::string& path : {ConfigFileOf(vm), StateFileOf(vm)}) {
      if (FileExists(path))
        return MakeError(Code::kAlreadyExists, "'{}' is there already; move it away", path);
    }
  }
  return {};
}

Result<void> CheckNothingIsSaved(const std::vector<ConfigFile>& old) {
  std::string saved;
  for (const ConfigFile& file : old) {
    if (!file.vm.saved()) continue;
    const bool is_checkpoint = file.vm.has_checkpoint();
    saved += fmt::format("{}{}'{}'", saved.empty() ? "" : ", ", is_checkpoint ? "checkpoint " : "",
                         is_checkpoint ? file.vm.checkpoint().name() : file.vm.name());
  }
  if (saved.empty()) return {};
  return MakeError(Code::kFailedPrecondition,
                   "the saved memory of {} cannot be kept; agree to lose it (--yes)", saved);
}

}  // namespace

Result<config::Vm> UpgradeConfig(FileOperations& files, ConfigRegistry& registry,
                                 const config::Vm& vm, bool discard_saved_states) {
  const std::vector<ConfigFile> old = TRY(OldFiles(vm));
  if (!discard_saved_states) TRY_VOID(CheckNothingIsSaved(old));
  TRY_VOID(CheckRoom(old));
  TRY_VOID(registry.BeginUpgrade(vm.id()));
  const auto write = [&]() -> Result<void> {
    for (const ConfigFile& file : old)
      TRY_VOID(WriteConfigFile(files, Upgraded(file.vm), file.tree));
    return registry.Register(vm.id(), ConfigFileOf(Upgraded(vm)));
  };
  const auto written = write();
  const auto settled = Settle(files, registry, vm.id());
  // The next start tries it again.
  if (!settled.ok())
    spdlog::warn("tidying up after the upgrade of '{}': {}", vm.name(), settled.error().ToString());
  if (!written.ok()) return written.error();
  return Upgraded(vm);
}

std::vector<Error> SettleUpgrades(FileOperations& files, ConfigRegistry& registry) {
  std::vector<Error> errors;
  const std::set<std::string> ids = registry.upgrades();
  for (const std::string& id : ids) {
    auto settled = Settle(files, registry, id);
    if (!settled.ok())
      errors.push_back(
          std::move(settled.error()).WithContext(fmt::format("settling the upgrade of {}", id)));
  }
  return errors;
}

std::vector<std::string> ConfigFilesIn(const std::string& folder) {
  std::vector<std::string> paths;
  DIR* entries = ::opendir(folder.c_str());
  if (entries == nullptr) return paths;
  while (const dirent* entry = ::readdir(entries)) {
    if (!IdOfConfigFile(entry->d_name).empty()) paths.push_back(folder + "/" + entry->d_name);
  }
  ::closedir(entries);
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace kvmbus::vmm
