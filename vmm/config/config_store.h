// SPDX-License-Identifier: Apache-2.0
/// \file
/// Where the configurations of VMs are kept, behind an interface.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "config/vm.pb.h"
#include "vmm/config/file_operations.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

class ConfigStore {
 public:
  virtual ~ConfigStore() = default;
  struct Listing {
    std::vector<config::Vm> vms;
    std::vector<config::Vm> checkpoints;  ///< each has its VM's id
    std::vector<Error> damaged;  ///< files that could not be read or are nobody's; they stay
  };
  virtual Result<Listing> List() = 0;
  /// Of a VM or a checkpoint, new or changed: the old or the new, never between. A folder that is
  /// not named is the store's own. What the file has and we do not know stays.
  virtual Result<void> Save(const config::Vm& vm) = 0;
  /// As Save, of a VM whose file is there and not in the list yet.
  virtual Result<void> Adopt(const config::Vm& vm) = 0;
  /// With its saved state; a machine with its checkpoints too, all or nothing.
  virtual Result<void> Delete(const config::Vm& vm) = 0;
  /// Removes what a killed writer has left of a saved state of the VM, and the whole saved state
  /// unless `vm` is Saved. `ours_alone`: a saved state that Hyper-V wrote stays.
  virtual Result<void> TidySavedState(const config::Vm& vm, bool ours_alone) = 0;
  /// Of a VM of version 5.0 with its checkpoints: the same in 6.2, without saved states, which must
  /// be none or agreed to. All or nothing, whenever the process ends.
  virtual Result<config::Vm> Upgrade(const config::Vm& vm, bool discard_saved_states) = 0;
};

/// `folder`/data.vmcx names the VMs; each has its files in a folder of its own or in this one.
/// `files` outlives the store.
///
/// The list of VMs is the truth: a new VM's file is written before its entry, a deleted one's file
/// goes after it. A file without an entry, which a kill may leave, is reported at the next start
/// and stays. Without a list, the machines in `folder` are listed anew.
Result<std::unique_ptr<ConfigStore>> OpenFileConfigStore(const std::string& folder);
Result<std::unique_ptr<ConfigStore>> OpenFileConfigStore(const std::string& folder,
                                                         FileOperations& files);

}  // namespace kvmbus::vmm
