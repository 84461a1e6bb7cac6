// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/transfer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <map>
#include <set>

#include "vmm/config/config_file.h"
#include "vmm/config/vm_files.h"
#include "vmm/os/file.h"
#include "vmm/os/file_copy.h"

namespace kvmbus::vmm {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxChain = 128;
constexpr const char* kDisksFolder = "/Virtual Hard Disks";

Result<uint64_t> SizeOf(const std::string& path) {
  std::error_code error;
  const uint64_t bytes = fs::file_size(path, error);
  if (error) return Error::FromErrno(error.value(), fmt::format("'{}'", path));
  return bytes;
}

class Planner {
 public:
  Planner(std::vector<ConfigMove> configs, bool flatten, DiskFiles& files)
      : flatten_(flatten), files_(files) {
    transfer_.folder = configs.back().vm.folder();
    transfer_.configs = std::move(configs);
  }

  Result<Transfer> Run() {
    for (ConfigMove& config : transfer_.configs) {
      TRY_VOID(CheckCanBeCopied(config.vm));
      for (config::Disk& disk : *config.vm.mutable_disks()) {
        if (disk.kind() == config::HARD_DISK) disk.set_path(TRY(AddImage(disk.path())));
      }
      config::Firmware* firmware = config.vm.mutable_firmware();
      if (!firmware->kernel().empty()) firmware->set_kernel(TRY(AddFile(firmware->kernel())));
      if (!firmware->initrd().empty()) firmware->set_initrd(TRY(AddFile(firmware->initrd())));
      TRY_VOID(AddSavedState(config));
    }
    return std::move(transfer_);
  }

 private:
  /// Its new path; a file that several name is copied once.
  Result<std::string> Add(FileCopy copy, const std::string& folder, const fs::path& name) {
    std::string& to = places_[copy.from];
    if (!to.empty()) return to;
    copy.to = to = NewName(transfer_.folder + folder, name);
    copy.bytes = TRY(SizeOf(copy.from));
    transfer_.copies.push_back(std::move(copy));
    return to;
  }

  Result<std::string> AddFile(const std::string& named) {
    const std::string from = TRY(RealPath(named));
    return Add({FileCopy::Kind::kFile, from, "", "", 0}, "", fs::path(from).filename());
  }

  /// And what it stands on.
  Result<std::string> AddImage(const std::string& disk) {
    std::vector<std::string> chain = {TRY(RealPath(disk))};
    while (true) {
      const std::string parent = TRY(files_.ParentOf(chain.back()));
      if (parent.empty()) break;
      chain.push_back(TRY(RealPath(parent)));
      if (chain.size() > kMaxChain)
        return MakeError(Code::kFailedPrecondition,
                         "disk '{}' stands on more than {} others; merge some of them", disk,
                         kMaxChain);
    }
    if (flatten_ && chain.size() > 1)
      return Add({FileCopy::Kind::kFlatImage, chain.front(), "", "", 0}, kDisksFolder,
                 fs::path(chain.back()).filename());
    std::string below;
    for (auto file = chain.rbegin(); file != chain.rend(); ++file)
      below = TRY(Add({FileCopy::Kind::kImage, *file, "", below, 0}, kDisksFolder,
                      fs::path(*file).filename()));
    return below;
  }

  Result<void> AddSavedState(const ConfigMove& config) {
    if (!config.vm.saved()) return {};
    const std::vector<std::string> to = SavedStateFilesOf(config.vm);
    for (size_t i = 0; i < to.size(); ++i) {
      const std::string from = TRY(RealPath(config.saved_state.at(i)));
      transfer_.copies.push_back({FileCopy::Kind::kFile, from, to[i], "", TRY(SizeOf(from))});
    }
    return {};
  }

  /// The name itself, or "name-2.vhdx" where two files of one name meet.
  std::string NewName(const std::string& folder, const fs::path& name) {
    std::string path = folder + "/" + name.string();
    for (int number = 2; !taken_.insert(path).second; ++number)
      path = fmt::format("{}/{}-{}{}", folder, name.stem().string(), number,
                         name.extension().string());
    return path;
  }

  const bool flatten_;
  DiskFiles& files_;
  Transfer transfer_;
  std::map<std::string, std::string> places_;  ///< where files go
  std::set<std::string> taken_;
};

Result<void> MakeCopy(const FileCopy& copy, DiskFiles& files, const DiskFiles::Progress& progress) {
  if (copy.kind == FileCopy::Kind::kFlatImage) return files.Flatten(copy.from, copy.to, progress);
  if (copy.kind == FileCopy::Kind::kFile) {
    const Fd from = TRY(OpenFile(copy.from, O_RDONLY | O_NOFOLLOW));
    TRY_VOID(CheckIsAt(from.get(), copy.from));
    return CopyToNewFile(from.get(), copy.to, progress);
  }
  TRY_VOID(files.Copy(copy.from, copy.to, progress));
  return copy.parent.empty() ? Result<void>() : files.Reparent(copy.to, copy.parent);
}

}  // namespace

std::vector<std::string> Transfer::NewFiles() const {
  std::vector<std::string> list;
  for (const ConfigMove& config : configs) {
    list.push_back(ConfigFileOf(config.vm));
    if (!config.vm.saved() && !HasStateMirror(config.vm)) continue;
    for (const std::string& file : SavedStateFilesOf(config.vm)) list.push_back(file);
  }
  for (const FileCopy& copy : copies) list.push_back(copy.to);
  return list;
}

std::vector<std::string> Transfer::NewFolders() const {
  std::set<std::string> all = {folder};  // in order, parents come first
  for (const std::string& file : NewFiles()) {
    for (std::string at = FolderOf(file); at.size() > folder.size(); at = FolderOf(at))
      all.insert(at);
  }
  return {all.begin(), all.end()};
}

Result<void> CheckCanBeCopied(const config::Vm& vm) {
  for (const config::Disk& disk : vm.disks()) {
    if (disk.shared())
      return MakeError(Code::kFailedPrecondition,
                       "'{}': disk '{}' is shared with other virtual machines; detach it first",
                       vm.name(), disk.path());
    if (!disk.next().empty())
      return MakeError(Code::kFailedPrecondition, "'{}': a child of disk '{}' is being made",
                       vm.name(), disk.path());
  }
  return {};
}

Result<Transfer> PlanTransfer(std::vector<ConfigMove> configs, bool flatten, DiskFiles& files) {
  return Planner(std::move(configs), flatten, files).Run();
}

Result<void> MakeTransfer(const Transfer& transfer, DiskFiles& files,
                          const DiskFiles::Progress& progress) {
  for (const std::string& folder : transfer.NewFolders()) {
    if (folder == transfer.folder) continue;
    TRY_VOID(MakeNewFolder(folder, kCopyFolderMode));
  }
  uint64_t done = 0, total = 0;
  for (const FileCopy& copy : transfer.copies) total += copy.bytes;
  for (const FileCopy& copy : transfer.copies) {
    const auto report = [&](uint64_t part, uint64_t whole) {
      const double share =
          whole == 0 ? 1.0 : static_cast<double>(part) / static_cast<double>(whole);
      return progress(done + static_cast<uint64_t>(share * static_cast<double>(copy.bytes)), total);
    };
    TRY_VOID(MakeCopy(copy, files, report));
    done += copy.bytes;
  }
  FileOperations operations;
  for (const ConfigMove& config : transfer.configs) {
    Key tree = TRY(ReadConfigTree(config.file));
    TRY_VOID(WriteConfigFile(operations, config.vm, std::move(tree)));
  }
  return {};
}

Result<void> RemoveTransfer(const google::protobuf::RepeatedPtrField<std::string>& files,
                            const google::protobuf::RepeatedPtrField<std::string>& folders) {
  for (const std::string& file : files) {
    for (const std::string& unfinished : UnfinishedOf(file)) TRY_VOID(RemoveFile(unfinished));
    TRY_VOID(RemoveFile(file));
  }
  for (auto folder = folders.rbegin(); folder != folders.rend(); ++folder) {
    if (::rmdir(folder->c_str()) < 0 && errno != ENOENT && errno != ENOTEMPTY)
      return Error::FromErrno(errno, fmt::format("removing the folder '{}'", *folder));
  }
  return folders.empty() ? Result<void>() : SyncFolder(FolderOf(folders[0]));
}

}  // namespace kvmbus::vmm
