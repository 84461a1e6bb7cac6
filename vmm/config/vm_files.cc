// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/vm_files.h"

#include <filesystem>

#include "vmm/config/versions.h"

namespace kvmbus::vmm {
namespace {

bool IsXml(const config::Vm& vm) { return vm.version() == kVersion50; }

/// Without an ending.
std::string Stem(const config::Vm& vm) {
  if (vm.has_checkpoint()) return CheckpointsFolderOf(vm) + "/" + vm.checkpoint().id();
  return MachinesFolderOf(vm) + "/" + vm.id();
}

/// In a folder of its own, which has the same name.
std::string StemBelow(const config::Vm& vm) {
  const std::string& id = vm.has_checkpoint() ? vm.checkpoint().id() : vm.id();
  return Stem(vm) + "/" + id;
}

}  // namespace

std::string MachinesFolderOf(const config::Vm& vm) { return vm.folder() + "/Virtual Machines"; }
std::string CheckpointsFolderOf(const config::Vm& vm) { return vm.folder() + "/Snapshots"; }

std::string ConfigFileOf(const config::Vm& vm) { return Stem(vm) + (IsXml(vm) ? ".xml" : ".vmcx"); }

std::string StateFileOf(const config::Vm& vm) {
  return IsXml(vm) ? StemBelow(vm) + ".vsv" : Stem(vm) + ".vmrs";
}

std::string MemoryFileOf(const config::Vm& vm) {
  return IsXml(vm) ? StemBelow(vm) + ".bin" : Stem(vm) + ".vmrs";
}

std::vector<std::string> SavedStateFilesOf(const config::Vm& vm) {
  if (IsXml(vm)) return {StateFileOf(vm), MemoryFileOf(vm)};
  return {StateFileOf(vm)};
}

std::string NormalFolder(const std::string& folder) {
  std::error_code none;  // a relative one stays, if there is no current folder
  const auto path = std::filesystem::absolute(folder, none).lexically_normal();
  return path.has_filename() ? path.string() : path.parent_path().string();
}

}  // namespace kvmbus::vmm
