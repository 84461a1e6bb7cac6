// SPDX-License-Identifier: Apache-2.0
/// \file
/// IcDevice: what the integration services share: the pipe, the version negotiation, one
/// transaction at a time.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "state/ic.pb.h"
#include "virtdev/synthetic/ic/ic_protocol.h"
#include "virtdev/vmbus/channel.h"

namespace kvmbus::virtdev {

/// Home: the main loop, channel included.
class IcDevice : public VmbusDevice {
 public:
  std::string_view device_name() const override { return name_; }
  const ChannelOffer& offer() const override { return offer_; }
  vmm::Result<void> Open(uint16_t index, std::unique_ptr<Channel> channel) override;
  void Close(uint16_t index) override;
  void Start() override;
  void Stop() override;
  void Reset() override;
  vmm::Result<std::string> Save() override;
  vmm::Result<void> Restore(
      std::string_view state,
      std::vector<std::pair<uint16_t, std::unique_ptr<Channel>>> channels) override;
  void VisitCounters(const vmm::CounterVisitor& visit) const override;

 protected:
  IcDevice(std::string name, uint16_t type, const vmm::Guid& interface_id,
           const vmm::Guid& instance_id, std::vector<ic::Version> versions, vmm::Loop& loop);
  ~IcDevice() override;

  vmm::Loop& loop() { return loop_; }
  bool open() const { return channel_ != nullptr; }
  /// Chosen by the guest; nullopt until it has answered.
  const std::optional<ic::Version>& version() const { return version_; }
  bool transaction_pending() const { return pending_transaction_.has_value(); }

  /// Sends a request; false if not negotiated, one is pending already, or the ring is full.
  bool SendRequest(std::span<const uint8_t> body);
  /// Gives the pending transaction up; its answer is late, then.
  void AbandonTransaction() { pending_transaction_.reset(); }

  // What a service does.
  virtual void OnNegotiated() = 0;
  /// The guest's answer to the pending request.
  virtual void OnResponse(uint32_t status, std::span<const uint8_t> body) = 0;
  /// An answer to a request that was given up.
  virtual void OnLateResponse(std::span<const uint8_t> body) { (void)body; }
  /// The session ended: closed, reset. Timers are cancelled, whoever waits is told.
  virtual void OnSessionEnd() = 0;
  /// Start and stop of the machine while the channel is open: timers run only in between.
  virtual void OnStart() = 0;
  virtual void OnStop() = 0;
  virtual void ResetState() = 0;
  virtual void SaveState(state::IntegrationService* state) const = 0;
  virtual bool RestoreState(const state::IntegrationService& state) = 0;

 private:
  void Attach();
  void Detach();
  void OnReady();
  void HandlePacket(std::span<const uint8_t> payload);
  void HandleNegotiation(std::span<const uint8_t> body);
  bool SendNegotiation();
  bool SendMessage(uint16_t type, ic::Version version, std::span<const uint8_t> body);
  void EndSession();

  const std::string name_;
  const uint16_t type_;
  const ChannelOffer offer_;
  const std::vector<ic::Version> versions_;
  vmm::Loop& loop_;
  std::unique_ptr<Channel> channel_;
  bool running_ = false;
  bool attached_ = false;
  bool negotiation_sent_ = false;
  std::optional<ic::Version> version_;
  std::optional<uint8_t> pending_transaction_;
  uint8_t next_transaction_ = 1;
  vmm::Counter malformed_;
  vmm::Counter requests_;
};

}  // namespace kvmbus::virtdev
