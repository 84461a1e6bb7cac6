// SPDX-License-Identifier: Apache-2.0
/// \file
/// A configuration's tree in its file: .xml is version 5.0, .vmcx everything newer.
#pragma once

#include <string>

#include "config/vm.pb.h"
#include "vmm/config/file_operations.h"
#include "vmm/config/vm_tree.h"
#include "vmm/hvs/key_tree.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

inline constexpr const char* kXmlSuffix = ".xml";
inline constexpr const char* kVmcxSuffix = ".vmcx";

/// By the name's ending. The error names the file.
Result<Key> ReadConfigTree(const std::string& path);
/// The file's content.
Result<std::string> FormatConfigTree(const std::string& path, const Key& tree);
Result<std::string> FormatContainer(const Key& tree);

/// The tree and what it says, with the folder; refuses what this version does not run.
struct ConfigFile {
  Key tree;
  config::Vm vm;
};
Result<ConfigFile> ReadConfigFile(const std::string& path);

/// What a .vmrs says of a machine that is off: a few keys of its configuration.
Key StateMirrorOf(const Key& tree);
/// Whether it has one while it is off.
bool HasStateMirror(const config::Vm& vm);
/// Whether the file is one, and no saved state.
bool IsStateMirror(const std::string& path);
/// Whether the file is a saved state that kvmbus wrote.
bool IsOwnSavedState(const std::string& path);
Result<void> ReplaceStateMirror(FileOperations& files, const config::Vm& vm, const Key& tree);

/// Where a configuration of that id and version belongs, with the mirror of one that is off. What
/// `tree` has and we do not know stays.
Result<void> WriteConfigFile(FileOperations& files, const config::Vm& vm, Key tree);

/// "<ID>" of "<ID>.vmcx" or "<ID>.xml"; "" if that is no GUID in upper case, or for another ending.
std::string IdOfConfigFile(const std::string& name);

}  // namespace kvmbus::vmm
