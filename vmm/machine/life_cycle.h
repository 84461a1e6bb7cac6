// SPDX-License-Identifier: Apache-2.0
/// \file
/// The life of a machine as a state machine without side effects.
#pragma once

#include <string_view>

#include "vmm/result/result.h"

namespace kvmbus::vmm {

enum class MachineState {
  kOff,
  kStarting,
  kRunning,
  kPausing,
  kPaused,
  kSaving,
  kSaved,
  kStopping
};

std::string_view MachineStateName(MachineState state);

/// Off -> Starting -> Running -> Pausing -> Paused -> Running
///                                          Paused -> Saving -> Saved
/// A saved machine: Off -> Starting -> Paused -> Running
/// Saving -> Paused and Starting -> Off are failures; any of them -> Stopping -> Off.
bool MayChange(MachineState from, MachineState to);

/// kFailedPrecondition naming both states if the change is not allowed.
Result<void> CheckChange(MachineState from, MachineState to);

}  // namespace kvmbus::vmm
