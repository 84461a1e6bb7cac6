// SPDX-License-Identifier: Apache-2.0
/// \file
/// HeartbeatDevice: asks the guest every two seconds whether it is there.
#pragma once

#include <functional>

#include "virtdev/synthetic/ic/ic_device.h"

namespace kvmbus::virtdev {

enum class HeartbeatStatus { kNoContact, kOk, kLostContact };

/// Home: the main loop.
class HeartbeatDevice final : public IcDevice {
 public:
  static constexpr uint64_t kPeriodNs = 2'000'000'000;
  static constexpr unsigned kMissesUntilLost = 5;

  HeartbeatDevice(std::string name, const vmm::Guid& instance_id, vmm::Loop& loop,
                  std::function<void()> changed);
  ~HeartbeatDevice() override;

  HeartbeatStatus status() const { return status_; }

 private:
  void OnNegotiated() override;
  void OnResponse(uint32_t status, std::span<const uint8_t> body) override;
  void OnSessionEnd() override;
  void OnStart() override;
  void OnStop() override;
  void ResetState() override;
  void SaveState(state::IntegrationService* state) const override;
  bool RestoreState(const state::IntegrationService& state) override;
  void Beat();
  void SetStatus(HeartbeatStatus status);

  const std::function<void()> changed_;
  vmm::Loop::TimerId timer_ = 0;
  uint64_t sequence_ = 0;
  unsigned misses_ = 0;
  HeartbeatStatus status_ = HeartbeatStatus::kNoContact;
};

}  // namespace kvmbus::virtdev
