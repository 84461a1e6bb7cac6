// SPDX-License-Identifier: Apache-2.0
/// \file
/// StorvscSession: the handshake of a controller's primary channel, as a state machine without I/O.
#pragma once

#include <cstdint>

#include "virtdev/synthetic/scsi/storvsc_protocol.h"
#include "vmm/result/result.h"

namespace kvmbus::virtdev {

/// Home: whoever has it.
class StorvscSession {
 public:
  enum class Phase : uint8_t { kBegin = 0, kVersion = 1, kProperties = 2, kEnd = 3, kReady = 4 };

  struct Limits {
    uint16_t max_sub_channels = 0;
    uint32_t max_transfer_bytes = 0;
  };
  struct State {
    Phase phase = Phase::kBegin;
    uint16_t version = 0;       ///< 0 until negotiated
    uint16_t sub_channels = 0;  ///< granted
    bool operator==(const State&) const = default;
  };

  explicit StorvscSession(Limits limits) : limits_(limits) {}

  struct Outcome {
    uint32_t status = storvsc::kStatusSuccess;  ///< of the COMPLETE_IO reply
    bool became_ready = false;
    bool sub_channels_created = false;  ///< offer state().sub_channels of them
  };
  /// A control operation (anything but EXECUTE_SRB in kReady); fills in the reply's payload.
  Outcome Handle(const storvsc::Packet& request, storvsc::Packet* reply);

  bool ready() const { return state_.phase == Phase::kReady; }
  const State& state() const { return state_; }
  void Reset() { state_ = State(); }
  /// kDataLoss unless it is a state that Handle could have reached.
  vmm::Result<void> Restore(const State& state);

 private:
  Outcome HandleVersion(const storvsc::Packet& request, storvsc::Packet* reply);
  Outcome HandleCreateSubChannels(const storvsc::Packet& request);
  void FillProperties(storvsc::Packet* reply) const;

  Limits limits_;
  State state_;
};

}  // namespace kvmbus::virtdev
