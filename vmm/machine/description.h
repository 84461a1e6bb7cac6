// SPDX-License-Identifier: Apache-2.0
/// \file
/// The machine description: the board compiled from a VM's configuration, as a flattened device
/// tree. The worker builds exactly what it says; it is embedded in saved state and compared before
/// a restore. What a guest can see is in it, paths of the host are not. A golden test guards it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "config/vm.pb.h"
#include "vmm/guid/guid.h"
#include "vmm/machine/layout.h"

namespace kvmbus::vmm {

struct VmbusOffer {
  std::string name;  ///< "scsi/0", "heartbeat": the device's name in logs and saved state
  std::string
      compatible;  ///< "kvmbus,scsi", "kvmbus,heartbeat", "kvmbus,shutdown", "kvmbus,timesync"
  Guid instance;   ///< stable for the life of the VM
  bool operator==(const VmbusOffer&) const = default;
};

struct MachineDescription {
  std::string vm_id;
  uint32_t generation = 2;
  uint32_t vcpu_count = 1;
  uint64_t memory_bytes = 0;
  std::string command_line;  ///< direct Linux boot
  bool com1 = false;
  std::vector<VmbusOffer> offers;  ///< in the order of offering
  bool operator==(const MachineDescription&) const = default;
};

/// Compiles the board of a valid configuration.
MachineDescription CompileMachine(const config::Vm& vm);

std::string ToFdt(const MachineDescription& machine);

/// Refuses what is not a device tree, or not one of ours (kDataLoss).
Result<MachineDescription> FromFdt(std::string_view fdt);

/// Whether a saved machine goes on as `now`: it is the same board. A copy has an id of its own.
bool CanGoOnAs(MachineDescription saved, const MachineDescription& now);

}  // namespace kvmbus::vmm
