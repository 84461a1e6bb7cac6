// SPDX-License-Identifier: Apache-2.0
#include "virtdev/synthetic/ic/heartbeat.h"

#include <cstring>

namespace kvmbus::virtdev {

namespace {
constexpr vmm::Guid kInterface = vmm::MakeGuid("57164f39-9115-4e78-ab55-382f3bd5422d");
}  // namespace

HeartbeatDevice::HeartbeatDevice(std::string name, const vmm::Guid& instance_id, vmm::Loop& loop,
                                 std::function<void()> changed)
    : IcDevice(std::move(name), ic::kTypeHeartbeat, kInterface, instance_id, {{1, 0}, {3, 0}},
               loop),
      changed_(std::move(changed)) {}

HeartbeatDevice::~HeartbeatDevice() { OnStop(); }

void HeartbeatDevice::SetStatus(HeartbeatStatus status) {
  if (status == status_) return;
  status_ = status;
  if (changed_) changed_();
}

void HeartbeatDevice::OnNegotiated() { Beat(); }

void HeartbeatDevice::OnStart() {
  misses_ = 0;
  if (version()) Beat();
}

void HeartbeatDevice::OnStop() {
  loop().CancelTimer(timer_);
  timer_ = 0;
}

void HeartbeatDevice::OnSessionEnd() {
  OnStop();
  misses_ = 0;
  SetStatus(HeartbeatStatus::kNoContact);
}

void HeartbeatDevice::Beat() {
  loop().CancelTimer(timer_);
  timer_ = loop().AddTimer(kPeriodNs, [this] { Beat(); });
  if (transaction_pending()) {
    if (++misses_ >= kMissesUntilLost) SetStatus(HeartbeatStatus::kLostContact);
    return;  // the guest has our question; one is enough
  }
  ic::HeartbeatBody body = {};
  body.sequence = ++sequence_;
  (void)SendRequest({reinterpret_cast<const uint8_t*>(&body), sizeof(body)});
}

void HeartbeatDevice::OnResponse(uint32_t, std::span<const uint8_t> body) {
  uint64_t sequence;
  if (body.size() < sizeof(sequence)) return;
  std::memcpy(&sequence, body.data(), sizeof(sequence));
  misses_ = 0;
  sequence_ = sequence;  // the guest counted on
  SetStatus(HeartbeatStatus::kOk);
}

void HeartbeatDevice::ResetState() {
  sequence_ = 0;
  misses_ = 0;
}

void HeartbeatDevice::SaveState(state::IntegrationService* state) const {
  state->set_heartbeat_sequence(sequence_);
}

bool HeartbeatDevice::RestoreState(const state::IntegrationService& state) {
  sequence_ = state.heartbeat_sequence();
  misses_ = 0;
  return true;
}

}  // namespace kvmbus::virtdev
