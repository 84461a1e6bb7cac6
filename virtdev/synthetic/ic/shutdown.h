// SPDX-License-Identifier: Apache-2.0
/// \file
/// ShutdownDevice: asks the guest to shut down or restart.
#pragma once

#include <functional>

#include "virtdev/synthetic/ic/ic_device.h"
#include "vmm/result/result.h"

namespace kvmbus::virtdev {

/// Home: the main loop.
class ShutdownDevice final : public IcDevice {
 public:
  static constexpr uint64_t kAnswerTimeoutNs = 30'000'000'000;
  using Done = std::function<void(const vmm::Result<void>&)>;

  ShutdownDevice(std::string name, const vmm::Guid& instance_id, vmm::Loop& loop);
  ~ShutdownDevice() override;

  /// `done` is told once: accepted (it will act; wait for the machine to end), refused, or no
  /// answer.
  void RequestShutdown(bool restart, bool force, Done done);

 private:
  void OnNegotiated() override {}
  void OnResponse(uint32_t status, std::span<const uint8_t> body) override;
  void OnSessionEnd() override;
  void OnStart() override {}
  void OnStop() override {}
  void ResetState() override {}
  void SaveState(state::IntegrationService*) const override {}
  bool RestoreState(const state::IntegrationService&) override { return true; }
  void Finish(const vmm::Result<void>& result);

  Done done_;
  vmm::Loop::TimerId timer_ = 0;
};

}  // namespace kvmbus::virtdev
