// SPDX-License-Identifier: Apache-2.0
/// \file
/// Where the configurations of VMs are kept, behind an interface.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "config/vm.pb.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

class ConfigStore {
 public:
  virtual ~ConfigStore() = default;
  struct Listing {
    std::vector<config::Vm> vms;
    std::vector<config::Vm> checkpoints;  ///< each has its VM's id
    std::vector<Error> damaged;  ///< files that could not be read; they stay where they are
  };
  virtual Result<Listing> List() = 0;
  /// Of a VM or a checkpoint, new or changed: the old or the new, never between.
  virtual Result<void> Save(const config::Vm& vm) = 0;
  virtual Result<void> Delete(const config::Vm& vm) = 0;
};

/// One file a VM, <folder>/<ID>.vm, or checkpoint, <ID>.checkpoint: "KVMBCFG1", CRC-32C and length of the serialized config.Vm
/// behind them.
Result<std::unique_ptr<ConfigStore>> OpenFileConfigStore(const std::string& folder);

}  // namespace kvmbus::vmm
