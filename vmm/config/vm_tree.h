// SPDX-License-Identifier: Apache-2.0
/// \file
/// A virtual machine, or a checkpoint of one, as the tree of keys that Hyper-V keeps it in:
/// `/configuration/...`, of the same form in versions 5.0 (XML) and 6.2 (.vmcx). What only kvmbus
/// knows lies in `/configuration/kvmbus`.
#pragma once

#include <string>
#include <vector>

#include "config/vm.pb.h"
#include "vmm/config/versions.h"
#include "vmm/hvs/key_tree.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

/// Something of a configuration that a machine of ours cannot have. It stays in the tree.
struct Incompatibility {
  std::string what;
  std::string fix;  ///< what is proposed
};

struct VmOfTree {
  config::Vm vm;  ///< without its folder, which the file's place says
  std::vector<Incompatibility> incompatibilities;
};

/// Nothing is left out in silence. Disks may have paths of Windows. kDataLoss: it is no
/// configuration, or numbers in it make no sense; kUnimplemented: its version is unknown.
Result<VmOfTree> ReadVmTree(const Key& tree);

/// Changes the tree to say what `vm` says; keys that mean nothing to us stay. An empty tree gets
/// all the keys that a real one has. `now`: FILETIME, for a new tree.
void WriteVmTree(const config::Vm& vm, uint64_t now, Key* tree);

/// "6.2" is 0x602.
inline constexpr uint32_t kVersionNumber50 = 0x500, kVersionNumber62 = 0x602;
inline constexpr uint32_t kNewestVersionNumber = 0xc00;
std::string VersionName(uint32_t version);
/// Of a version that machines have here.
uint32_t VersionNumber(const std::string& name);

}  // namespace kvmbus::vmm
