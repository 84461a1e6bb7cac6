// SPDX-License-Identifier: Apache-2.0
#include "virtdev/synthetic/scsi/storvsc_session.h"

#include <algorithm>

namespace kvmbus::virtdev {

using storvsc::Operation;

namespace {

bool IsKnownVersion(uint16_t version) {
  switch (version) {
    case storvsc::kVersionWin6:
    case storvsc::kVersionWin7:
    case storvsc::kVersionWin8:
    case storvsc::kVersionBlue:
    case storvsc::kVersionWin10:
      return true;
    default:
      return false;
  }
}

}  // namespace

StorvscSession::Outcome StorvscSession::Handle(const storvsc::Packet& request,
                                               storvsc::Packet* reply) {
  const auto operation = static_cast<Operation>(request.header.operation);
  Outcome outcome;
  switch (state_.phase) {
    case Phase::kBegin:
      if (operation != Operation::kBeginInitialization) break;
      state_.phase = Phase::kVersion;
      return outcome;
    case Phase::kVersion:
      if (operation != Operation::kQueryProtocolVersion) break;
      return HandleVersion(request, reply);
    case Phase::kProperties:
      if (operation != Operation::kQueryProperties) break;
      FillProperties(reply);
      state_.phase = Phase::kEnd;
      return outcome;
    case Phase::kEnd:
      if (operation == Operation::kCreateSubChannels) return HandleCreateSubChannels(request);
      if (operation != Operation::kEndInitialization) break;
      state_.phase = Phase::kReady;
      outcome.became_ready = true;
      return outcome;
    case Phase::kReady:
      if (operation == Operation::kCreateSubChannels) return HandleCreateSubChannels(request);
      break;
  }
  outcome.status = storvsc::kStatusInvalidDeviceState;
  return outcome;
}

/// The guest offers its newest version first and comes back with older ones; the asked one is
/// echoed either way.
StorvscSession::Outcome StorvscSession::HandleVersion(const storvsc::Packet& request,
                                                      storvsc::Packet* reply) {
  const uint16_t version = request.version.major_minor;
  reply->version.major_minor = version;
  Outcome outcome;
  if (!IsKnownVersion(version)) {
    outcome.status = storvsc::kStatusRevisionMismatch;
    return outcome;
  }
  state_.version = version;
  state_.phase = Phase::kProperties;
  return outcome;
}

void StorvscSession::FillProperties(storvsc::Packet* reply) const {
  reply->properties.max_transfer_bytes = limits_.max_transfer_bytes;
  if (state_.version < storvsc::kVersionWin8) return;
  reply->properties.max_sub_channel_count = limits_.max_sub_channels;
  reply->properties.flags = storvsc::kPropertyMultiChannel;
}

StorvscSession::Outcome StorvscSession::HandleCreateSubChannels(const storvsc::Packet& request) {
  const uint16_t count = request.sub_channel_count;
  Outcome outcome;
  if (state_.version < storvsc::kVersionWin8 || count == 0 || count > limits_.max_sub_channels) {
    outcome.status = storvsc::kStatusInvalidParameter;
    return outcome;
  }
  state_.sub_channels = std::max(state_.sub_channels, count);  // those that exist stay
  outcome.sub_channels_created = true;
  return outcome;
}

vmm::Result<void> StorvscSession::Restore(const State& state) {
  const bool has_version = state.phase >= Phase::kProperties;
  const bool may_have_sub_channels =
      state.phase >= Phase::kEnd && state.version >= storvsc::kVersionWin8;
  if (state.phase > Phase::kReady || (has_version && !IsKnownVersion(state.version)) ||
      (!has_version && state.version != 0) || (state.sub_channels != 0 && !may_have_sub_channels) ||
      state.sub_channels > limits_.max_sub_channels)
    return vmm::MakeError(
        vmm::Code::kDataLoss,
        "saved SCSI session (phase {}, version {:#x}, {} sub-channels) is not valid",
        static_cast<unsigned>(state.phase), state.version, state.sub_channels);
  state_ = state;
  return {};
}

}  // namespace kvmbus::virtdev
