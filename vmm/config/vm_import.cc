// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/vm_import.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>

#include "vmm/checkpoint/checkpoint_tree.h"
#include "vmm/config/config_file.h"
#include "vmm/config/config_upgrade.h"
#include "vmm/config/limits.h"
#include "vmm/config/versions.h"
#include "vmm/config/vm_files.h"
#include "vmm/config/vm_tree_keys.h"
#include "vmm/guid/guid.h"
#include "vmm/os/file.h"
#include "vmm/text/letter_case.h"
#include "vmm/text/utf8.h"

namespace kvmbus::vmm {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxParents = 128;  ///< twice as many as checkpoints can make

bool IsInside(const fs::path& path, const fs::path& folder) {
  const auto [end, unused] = std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
  return end == folder.end() && path != folder;
}

/// The folders that an import may use.
class Folders {
 public:
  Result<void> Add(const std::string& folder) {
    const auto real = RealPath(folder);
    std::error_code error;
    if (!real.ok() || !fs::is_directory(*real, error))
      return MakeError(Code::kNotFound, "'{}' is no folder", folder);
    roots_.emplace_back(*real);
    return {};
  }

  /// The regular file that a configuration means by `path`, of Windows or not.
  std::optional<std::string> Find(const std::string& path) const {
    if (path.starts_with('/')) {
      if (auto found = Take(path)) return found;
    }
    const std::string name = path.substr(path.find_last_of("\\/") + 1);
    if (name.empty() || name == "." || name == "..") return std::nullopt;
    for (const fs::path& root : roots_) {
      for (const char* folder : {"", "Virtual Hard Disks", "Snapshots"}) {
        if (auto found = Take(root / folder / name)) return found;
      }
    }
    return std::nullopt;
  }

 private:
  std::optional<std::string> Take(const fs::path& path) const {
    const auto real = RealPath(path.string());
    std::error_code error;
    if (!real.ok() || !fs::is_regular_file(*real, error)) return std::nullopt;
    for (const fs::path& root : roots_) {
      if (IsInside(*real, root)) return *real;
    }
    return std::nullopt;
  }

  std::vector<fs::path> roots_;
};

class Planner {
 public:
  explicit Planner(const ImportOptions& options) : options_(options) {}

  Result<ImportPlan> Run() {
    const std::string file = TRY(FindFile());
    for (const std::string& folder : options_.folders) TRY_VOID(folders_.Add(folder));
    VmOfTree read = TRY(Read(file));
    plan_.incompatibilities = std::move(read.incompatibilities);
    if (read.vm.has_checkpoint())
      return MakeError(Code::kInvalidArgument, "'{}' is a checkpoint's; import its machine",
                       options_.file);
    read.vm.set_folder(folder_.string());
    plan_.machine.file = file;
    plan_.machine.before = std::move(read.vm);
    CheckPlace();
    FitAll(&plan_.machine.before);
    TRY_VOID(Checkpoints());
    MakeNew();
    if (plan_.obstacles.empty()) Validate();
    return std::move(plan_);
  }

 private:
  template <typename... Args>
  void Obstacle(std::string_view fix, fmt::format_string<Args...> what, Args&&... args) {
    plan_.obstacles.push_back(
        {Printable(fmt::format(what, std::forward<Args>(args)...)), std::string(fix)});
  }
  template <typename... Args>
  void Loses(std::string_view fix, fmt::format_string<Args...> what, Args&&... args) {
    plan_.incompatibilities.push_back(
        {Printable(fmt::format(what, std::forward<Args>(args)...)), std::string(fix)});
  }

  /// A link does not lead the import to another folder than the one that was given.
  Result<std::string> FindFile() {
    const fs::path named = NormalFolder(options_.file);
    fs::path folder = named.parent_path();
    if (folder.filename() == "Virtual Machines") folder = folder.parent_path();
    TRY_VOID(folders_.Add(folder.string()));
    folder_ = RealPath(folder.string()).value_or(folder.string());
    const auto file = folders_.Find(named.string());
    if (!file)
      return MakeError(Code::kNotFound,
                       "there is no file '{}', or it is a link out of its folder: name the "
                       "configuration itself (.vmcx or .xml, in 'Virtual Machines')",
                       options_.file);
    return *file;
  }

  Result<VmOfTree> Read(const std::string& path) const {
    const Key tree = TRY(ReadConfigTree(path));
    return TRY_CTX(ReadVmTree(tree), "configuration '{}'", path);
  }

  bool IsCopied() const { return options_.mode != ImportMode::kRegister; }

  void CheckPlace() {
    const auto& [file, vm, unused] = plan_.machine;
    if (IsCopied()) return;
    if (!Runs(vm.version()))
      Obstacle("import a copy of it (--copy or --restore), which gets version 6.2",
               "its files cannot be used where they are in version {}", vm.version());
    else if (ConfigFileOf(vm) != file)
      Obstacle("rename it, or import a copy", "'{}' should be '{}'", file, ConfigFileOf(vm));
  }

  static bool Runs(const std::string& version) {
    return version == kVersion50 || version == kVersion62;
  }

  /// Of the machine and of its checkpoints: every file that is named.
  void FitAll(config::Vm* vm) {
    const std::string whose =
        vm->has_checkpoint() ? fmt::format("checkpoint '{}': ", vm->checkpoint().name()) : "";
    for (config::Disk& disk : *vm->mutable_disks()) FitDisk(whose, &disk);
    FitMerges(whose, vm);
    if (!options_.firmware.kernel().empty())
      *vm->mutable_firmware() = options_.firmware;
    else
      FitFirmware(whose, vm->mutable_firmware());
    const std::string& com1 = vm->serial().com1();
    if (!com1.empty() && com1 != "console") {
      Loses("'vmctl vm console' shows it", "{}serial port to '{}'", whose, com1);
      // It keeps the port: its saved memory is that of a machine with one.
      vm->mutable_serial()->set_com1("console");
    }
    if (!vm->saved()) return;
    if (!Runs(vm->version())) {
      Loses("it starts anew", "{}saved memory of version {}", whose, vm->version());
      vm->set_saved(false);
      return;
    }
    if (folders_.Find(StateFileOf(*vm)) == StateFileOf(*vm) &&
        folders_.Find(MemoryFileOf(*vm)) == MemoryFileOf(*vm))
      return;
    Loses("it starts anew", "{}saved memory, whose file is not there", whose);
    vm->set_saved(false);
  }

  void FitDisk(const std::string& whose, config::Disk* disk) {
    if (!disk->next().empty()) {
      Loses("it goes on with the present one", "{}a new child of '{}'", whose, disk->path());
      disk->clear_next();
    }
    if (disk->path().empty() && disk->kind() == config::DVD) return;
    const auto found = folders_.Find(disk->path());
    if (found) {
      disk->set_path(*found);
      if (disk->kind() != config::DVD) FitParents(whose, *found);
    } else if (disk->kind() == config::DVD) {
      Loses("insert one", "{}disc '{}', which is in none of the folders", whose, disk->path());
      disk->clear_path();
    } else {
      Obstacle("give its folder with --folder", "{}disk '{}' is in none of the folders", whose,
               disk->path());
    }
  }

  /// A stranger's image may stand on any file that it names.
  void FitParents(const std::string& whose, const std::string& disk) {
    if (!options_.parent_of) return;
    std::string file = disk;
    for (int depth = 0; depth < kMaxParents; ++depth) {
      const auto parent = options_.parent_of(file);
      if (!parent.ok()) {
        Obstacle("put it beside the disk, or link the disk to it with 'vmctl disk reparent'",
                 "{}what disk '{}' stands on: {}", whose, file, parent.error().ToString());
        return;
      }
      if (parent->empty()) return;
      if (folders_.Find(*parent) != *parent) {
        Obstacle("give its folder with --folder",
                 "{}'{}', on which disk '{}' stands, is in none of the folders", whose, *parent,
                 file);
        return;
      }
      file = *parent;
    }
    Obstacle("merge some of them", "{}disk '{}' stands on more than {} others", whose, disk,
             kMaxParents);
  }

  /// Files that would be deleted or written.
  void FitMerges(const std::string& whose, config::Vm* vm) {
    if (vm->unneeded_disks_size() == 0 && !vm->has_merging()) return;
    Loses("merge them with 'vmctl disk merge'", "{}merges of disks that are not done", whose);
    vm->clear_unneeded_disks();
    vm->clear_merging();
  }

  void FitFirmware(const std::string& whose, config::Firmware* firmware) {
    const auto kernel = folders_.Find(firmware->kernel());
    const auto initrd = folders_.Find(firmware->initrd());
    if (!kernel || (!initrd && !firmware->initrd().empty())) {
      if (firmware->kernel().empty())
        Obstacle("give it a kernel with --kernel", "{}it boots from its disks", whose);
      else
        Obstacle("give them with --kernel and --initrd",
                 "{}its kernel '{}' or initrd '{}' is in none of the folders", whose,
                 firmware->kernel(), firmware->initrd());
      return;
    }
    firmware->set_kernel(*kernel);
    if (initrd) firmware->set_initrd(*initrd);
  }

  Result<void> Checkpoints() {
    const config::Vm& machine = plan_.machine.before;
    for (const std::string& path : ConfigFilesIn(CheckpointsFolderOf(machine))) {
      const auto real = folders_.Find(path);
      if (real != path) continue;  // a link to somewhere else
      auto read = Read(path);
      if (!read.ok()) {
        Obstacle("move it away, if it is of another machine", "{}", read.error().ToString());
        continue;
      }
      if (!read->vm.has_checkpoint() || read->vm.id() != machine.id()) continue;
      config::Vm checkpoint = std::move(read->vm);
      checkpoint.set_folder(folder_.string());
      if (ConfigFileOf(checkpoint) != path || checkpoint.version() != machine.version()) {
        Obstacle("move it away", "checkpoint '{}' is of version {}, or has another name", path,
                 checkpoint.version());
        continue;
      }
      FitName(&checkpoint);
      FitAll(&checkpoint);
      plan_.checkpoints.push_back({path, std::move(checkpoint), {}});
    }
    if (plan_.checkpoints.size() > kMaxCheckpoints)
      Obstacle("delete some of them where it comes from", "it has {} checkpoints; {} are allowed",
               plan_.checkpoints.size(), kMaxCheckpoints);
    return {};
  }

  /// A name is shown on terminals. Hyper-V's own may be too long.
  void FitName(config::Vm* vm) {
    std::string* name = vm->mutable_checkpoint()->mutable_name();
    std::string fit = TruncateUtf8(Printable(*name), kMaxCheckpointNameBytes);
    if (fit.empty()) fit = vm->checkpoint().id();
    if (fit == *name) return;
    Loses("'vmctl checkpoint rename' gives it another one",
          "the name of checkpoint '{}', which becomes '{}'", *name, fit);
    *name = std::move(fit);
  }

  /// What is to be of it all.
  void MakeNew() {
    config::Vm& vm = plan_.machine.vm;
    vm = plan_.machine.before;
    if (!options_.name.empty()) vm.set_name(options_.name);
    if (options_.mode == ImportMode::kCopy) {
      vm.set_id(NewId());
      vm.mutable_smbios()->clear_bios_guid();  // it follows the id: two machines are not one
    }
    vm.set_generation_id(Guid::Random().ToBytes());
    if (vm.scsi_controllers() == 0) vm.set_scsi_controllers(1);
    std::map<std::string, std::string> ids;  // of checkpoints, by those that they had
    for (ImportedConfig& checkpoint : plan_.checkpoints) {
      checkpoint.vm = checkpoint.before;
      const std::string& id = checkpoint.vm.checkpoint().id();
      ids[id] = options_.mode == ImportMode::kCopy ? NewId() : id;
    }
    const auto renamed = [&ids](const std::string& id) {
      const auto known = ids.find(id);
      return known == ids.end() ? "" : known->second;
    };
    vm.set_parent_checkpoint(renamed(vm.parent_checkpoint()));
    MakeNewPlace(&vm);
    for (ImportedConfig& checkpoint : plan_.checkpoints) {
      config::Checkpoint& about = *checkpoint.vm.mutable_checkpoint();
      checkpoint.vm.set_id(vm.id());
      *checkpoint.vm.mutable_smbios() = vm.smbios();
      about.set_id(renamed(about.id()));
      about.set_parent(renamed(about.parent()));
      MakeNewPlace(&checkpoint.vm);
    }
  }

  void MakeNewPlace(config::Vm* vm) const {
    if (!IsCopied()) return;
    if (!Runs(vm->version())) vm->set_version(kVersion62);
    vm->set_folder(NormalFolder(options_.destination) + "/" + plan_.machine.vm.name());
  }

  static std::string NewId() { return UpperCase(Guid::Random().ToString()); }

  void Validate() {
    if (const auto valid = ValidateConfig(plan_.machine.vm); !valid.ok())
      Obstacle("change it where it comes from", "{}", valid.error().ToString());
  }

  const ImportOptions& options_;
  fs::path folder_;
  Folders folders_;
  ImportPlan plan_;
};

}  // namespace

Result<ImportPlan> PlanImport(const ImportOptions& options) { return Planner(options).Run(); }

}  // namespace kvmbus::vmm
