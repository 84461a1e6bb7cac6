// SPDX-License-Identifier: Apache-2.0
/// \file
/// TimesyncDevice: tells the guest the host's time: set it once, then samples.
#pragma once

#include <functional>

#include "virtdev/synthetic/ic/ic_device.h"

namespace kvmbus::virtdev {

/// Home: the main loop.
class TimesyncDevice final : public IcDevice {
 public:
  static constexpr uint64_t kPeriodNs = 5'000'000'000;

  /// `reference_time` reads the partition's reference counter, in 100 ns.
  TimesyncDevice(std::string name, const vmm::Guid& instance_id, vmm::Loop& loop,
                 std::function<uint64_t()> reference_time);
  ~TimesyncDevice() override;

 private:
  void OnNegotiated() override;
  void OnResponse(uint32_t, std::span<const uint8_t>) override {}
  void OnSessionEnd() override;
  void OnStart() override;
  void OnStop() override;
  void ResetState() override {}
  void SaveState(state::IntegrationService*) const override {}
  bool RestoreState(const state::IntegrationService&) override { return true; }
  void Tick();
  bool SendTime(uint8_t flags);

  const std::function<uint64_t()> reference_time_;
  vmm::Loop::TimerId timer_ = 0;
  bool sync_due_ = true;  ///< after open, and after whatever stopped the guest
};

}  // namespace kvmbus::virtdev
