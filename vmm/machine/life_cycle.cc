// SPDX-License-Identifier: Apache-2.0
#include "vmm/machine/life_cycle.h"

namespace kvmbus::vmm {

std::string_view MachineStateName(MachineState state) {
  switch (state) {
    case MachineState::kOff:
      return "Off";
    case MachineState::kStarting:
      return "Starting";
    case MachineState::kRunning:
      return "Running";
    case MachineState::kPausing:
      return "Pausing";
    case MachineState::kPaused:
      return "Paused";
    case MachineState::kSaving:
      return "Saving";
    case MachineState::kSaved:
      return "Saved";
    case MachineState::kStopping:
      return "Stopping";
  }
  return "Unknown";
}

bool MayChange(MachineState from, MachineState to) {
  switch (from) {
    case MachineState::kOff:
      return to == MachineState::kStarting;
    case MachineState::kStarting:
      return to == MachineState::kRunning || to == MachineState::kPaused ||
             to == MachineState::kStopping || to == MachineState::kOff;
    case MachineState::kRunning:
      return to == MachineState::kPausing || to == MachineState::kStopping;
    case MachineState::kPausing:
      return to == MachineState::kPaused || to == MachineState::kStopping;
    case MachineState::kPaused:
      return to == MachineState::kRunning || to == MachineState::kSaving ||
             to == MachineState::kStopping;
    case MachineState::kSaving:
      return to == MachineState::kSaved || to == MachineState::kPaused ||
             to == MachineState::kStopping;
    case MachineState::kSaved:
      return to == MachineState::kStopping;
    case MachineState::kStopping:
      return to == MachineState::kOff;
  }
  return false;
}

Result<void> CheckChange(MachineState from, MachineState to) {
  if (MayChange(from, to)) return {};
  return MakeError(Code::kFailedPrecondition, "the virtual machine is {}; it cannot become {}",
                   MachineStateName(from), MachineStateName(to));
}

}  // namespace kvmbus::vmm
