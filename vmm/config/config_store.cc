// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/config_store.h"

#include <map>
#include <set>

#include "vmm/config/config_file.h"
#include "vmm/config/config_registry.h"
#include "vmm/config/config_upgrade.h"
#include "vmm/config/vm_files.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"

namespace kvmbus::vmm {
namespace {

class FileConfigStore final : public ConfigStore {
 public:
  FileConfigStore(std::string folder, FileOperations& files)
      : folder_(std::move(folder)), files_(files), registry_(files, folder_ + "/data.vmcx") {}

  Result<void> Open() {
    const bool is_new = !TRY(registry_.Load());
    TidyFolders();
    if (!is_new) return {};
    std::map<std::string, std::string> machines;
    for (const std::string& path : OwnFiles()) {
      const auto file = ReadConfigFile(path);
      if (file.ok()) machines[file->vm.id()] = path;
    }
    if (machines.empty()) return {};
    // In one step: of a list that has some of them, the others would be strangers.
    return registry_.RegisterAll(machines);
  }

  Result<Listing> List() override {
    Listing listing;
    listing.damaged = SettleUpgrades(files_, registry_);
    const auto deletions = registry_.deletions();
    for (const auto& [id, path] : deletions) {
      auto finished = FinishDeletion(id);
      if (!finished.ok()) listing.damaged.push_back(std::move(finished.error()));
    }
    std::set<std::string> folders = {CheckpointsFolderOf(Own())};
    for (const auto& [id, path] : registry_.machines()) {
      auto file = ReadConfigFile(path);
      if (file.ok() && (file->vm.id() != id || file->vm.has_checkpoint()))
        file = MakeError(Code::kDataLoss, "configuration '{}' is not of the virtual machine {}",
                         path, id);
      if (!file.ok()) {
        listing.damaged.push_back(std::move(file.error()));
        continue;
      }
      folders.insert(CheckpointsFolderOf(file->vm));
      listing.vms.push_back(std::move(file->vm));
    }
    for (const std::string& folder : folders) ListCheckpoints(folder, &listing);
    ListStrangers(&listing);
    return listing;
  }

  Result<void> Save(const config::Vm& vm) override { return Write(vm, false); }
  Result<void> Adopt(const config::Vm& vm) override { return Write(vm, true); }

  Result<void> Delete(const config::Vm& given) override {
    config::Vm vm = given;
    if (vm.folder().empty()) vm.set_folder(folder_);
    if (!vm.has_checkpoint()) {
      if (registry_.machines().count(vm.id()) == 0)
        return MakeError(Code::kNotFound, "there is no virtual machine {}", vm.id());
      TRY_VOID(registry_.BeginDeletion(vm.id()));
      const auto finished = FinishDeletion(vm.id());
      if (!finished.ok())
        spdlog::error("files of '{}' are left, and go when vmmd starts again: {}", vm.name(),
                      finished.error().ToString());
      return {};
    }
    if (!FileExists(ConfigFileOf(vm)))
      return MakeError(Code::kNotFound, "there is no checkpoint '{}'", ConfigFileOf(vm));
    return RemoveFilesOf(vm);
  }

  Result<void> TidySavedState(const config::Vm& vm, bool ours_alone) override {
    for (const std::string& file : SavedStateFilesOf(vm))
      TRY_VOID(files_.Remove(file + std::string(kUnfinishedSuffix)));
    if (vm.saved() || (ours_alone && !IsOwnSavedState(StateFileOf(vm)))) return {};
    if (!HasStateMirror(vm)) {
      for (const std::string& file : SavedStateFilesOf(vm)) TRY_VOID(files_.Remove(file));
      return {};
    }
    if (IsStateMirror(StateFileOf(vm))) return {};
    return ReplaceStateMirror(files_, vm, TRY(ReadConfigTree(ConfigFileOf(vm))));
  }

  Result<config::Vm> Upgrade(const config::Vm& given, bool discard_saved_states) override {
    config::Vm vm = given;
    if (vm.folder().empty()) vm.set_folder(folder_);
    if (vm.version() != kVersion50 || vm.has_checkpoint() ||
        registry_.machines().count(vm.id()) == 0)
      return MakeError(Code::kFailedPrecondition, "'{}' has version {}; {} can be upgraded",
                       vm.name(), vm.version(), kVersion50);
    return UpgradeConfig(files_, registry_, vm, discard_saved_states);
  }

 private:
  /// Each once: most machines share theirs.
  void TidyFolders() const {
    std::set<std::string> folders = {folder_, MachinesFolderOf(Own()), CheckpointsFolderOf(Own())};
    for (const auto& [id, path] : registry_.machines()) {
      const config::Vm vm = MachineAt(id, path);
      folders.insert({MachinesFolderOf(vm), CheckpointsFolderOf(vm)});
    }
    for (const std::string& folder : folders) RemoveUnfinished(folder);
  }

  /// As its entry in the list says, for its file may be damaged.
  static config::Vm MachineAt(const std::string& id, const std::string& path) {
    config::Vm vm;
    vm.set_id(id);
    vm.set_version(path.ends_with(kXmlSuffix) ? kVersion50 : kVersion62);
    vm.set_folder(FolderOf(FolderOf(path)));
    return vm;
  }

  /// The configuration last: of a checkpoint, it says whose the rest is.
  Result<void> RemoveFilesOf(const config::Vm& vm) {
    TRY_VOID(files_.Remove(MemoryFileOf(vm)));
    TRY_VOID(files_.Remove(StateFileOf(vm)));
    return files_.Remove(ConfigFileOf(vm));
  }

  Result<void> FinishDeletion(const std::string& id) {
    const config::Vm vm = MachineAt(id, registry_.deletions().at(id));
    for (const std::string& other : ConfigFilesIn(CheckpointsFolderOf(vm))) {
      const auto checkpoint = ReadConfigFile(other);
      if (checkpoint.ok() && checkpoint->vm.has_checkpoint() && checkpoint->vm.id() == id)
        TRY_VOID(RemoveFilesOf(checkpoint->vm));
    }
    TRY_VOID(RemoveFilesOf(vm));
    return registry_.EndDeletion(id);
  }

  Result<void> Write(const config::Vm& given, bool take_what_is_there) {
    config::Vm vm = given;
    if (vm.folder().empty()) vm.set_folder(folder_);
    const std::string path = ConfigFileOf(vm);
    Key tree;
    if (FileExists(path)) {
      if (!take_what_is_there && !vm.has_checkpoint() && registry_.machines().count(vm.id()) == 0)
        return MakeError(Code::kAlreadyExists,
                         "'{}' is there already, and no virtual machine's; move it away", path);
      tree = TRY(ReadConfigTree(path));
    }
    TRY_VOID(WriteConfigFile(files_, vm, std::move(tree)));
    if (vm.has_checkpoint()) return {};
    const auto known = registry_.machines().find(vm.id());
    if (known != registry_.machines().end() && known->second == path) return {};
    return registry_.Register(vm.id(), path);
  }

  /// Nobody, in the store's own folder.
  config::Vm Own() const {
    config::Vm own;
    own.set_folder(folder_);
    return own;
  }
  /// Machines there, registered or not.
  std::vector<std::string> OwnFiles() const { return ConfigFilesIn(MachinesFolderOf(Own())); }

  void ListCheckpoints(const std::string& folder, Listing* listing) {
    std::map<std::string, std::string> versions;
    for (const config::Vm& vm : listing->vms) versions[vm.id()] = vm.version();
    for (const std::string& path : ConfigFilesIn(folder)) {
      auto file = ReadConfigFile(path);
      if (file.ok() && !file->vm.has_checkpoint())
        file = MakeError(Code::kDataLoss, "configuration '{}' is not a checkpoint's", path);
      if (!file.ok()) {
        listing->damaged.push_back(std::move(file.error()));
        continue;
      }
      const auto vm = versions.find(file->vm.id());
      if (vm != versions.end() && vm->second == file->vm.version()) {
        listing->checkpoints.push_back(std::move(file->vm));
      } else if (vm == versions.end() && registry_.machines().count(file->vm.id()) == 0) {
        listing->damaged.push_back(
            MakeError(Code::kNotFound,
                      "checkpoint '{}' is of no virtual machine here: {}; delete it, or "
                      "import its machine",
                      path, file->vm.id()));
      }
    }
  }

  /// Files that a kill has left, or that somebody has copied here.
  void ListStrangers(Listing* listing) {
    std::set<std::string> known;
    for (const auto& [id, path] : registry_.machines()) known.insert(path);
    for (const std::string& path : OwnFiles()) {
      if (known.count(path) == 0)
        listing->damaged.push_back(
            MakeError(Code::kNotFound,
                      "configuration '{}' is not in the list of virtual machines (a creation "
                      "that was cut short?); import it, or delete it",
                      path));
    }
  }

  const std::string folder_;
  FileOperations& files_;
  ConfigRegistry registry_;
};

}  // namespace

Result<std::unique_ptr<ConfigStore>> OpenFileConfigStore(const std::string& folder,
                                                         FileOperations& files) {
  TRY_VOID(MakeFolders(folder, 0750));
  auto store = std::make_unique<FileConfigStore>(NormalFolder(folder), files);
  TRY_VOID(store->Open());
  return std::unique_ptr<ConfigStore>(std::move(store));
}

Result<std::unique_ptr<ConfigStore>> OpenFileConfigStore(const std::string& folder) {
  static FileOperations files;
  return OpenFileConfigStore(folder, files);
}

}  // namespace kvmbus::vmm
