// SPDX-License-Identifier: Apache-2.0
/// \file
/// VssDevice: "Backup (volume checkpoint)": freezes the guest's file systems, and thaws them.
#pragma once

#include <functional>
#include <string>

#include "virtdev/synthetic/ic/ic_device.h"
#include "vmm/result/result.h"

namespace kvmbus::virtdev {

/// Nobody but the host thaws a frozen guest: its own service waits for ever. So a thaw is owed from
/// the moment a freeze is sent until the guest has confirmed one, whatever becomes of the freeze:
/// - refused, unanswered or answered too late; not followed by Thaw() within the hold limit: the
///   thaw is sent at once;
/// - the machine stops (a pause, a save): it is sent at the next start. It is in the saved state
///   for that, so that such a machine may be saved, and whoever restores it pays;
/// - the guest closes the channel (its driver is reloaded): it is sent when it has opened it again.
/// A reset alone ends the debt, with the guest that was frozen.
///
/// A thaw that is not confirmed is repeated up to a limit; most often the guest's service has ended
/// then, and one that is started anew gets it. Thaw() begins anew after that.
///
/// Home: the main loop.
class VssDevice final : public IcDevice {
 public:
  struct Options {
    uint64_t hold_limit_ns = 10'000'000'000;
    uint64_t thaw_answer_ns = 10'000'000'000;  ///< an answer is waited for
    uint64_t thaw_retry_ns = 5'000'000'000;    ///< after a refusal
    unsigned thaw_attempts = 60;
  };
  using Done = std::function<void(const vmm::Result<void>&)>;

  VssDevice(std::string name, const vmm::Guid& instance_id, vmm::Loop& loop, Options options);
  ~VssDevice() override;

  /// `done` is told once: frozen, for no longer than the hold limit, or not, and then a thaw is on
  /// its way if the guest was asked to freeze. One freeze at a time.
  void Freeze(uint64_t timeout_ns, Done done);
  /// Asks the guest to thaw, frozen or not. `done` is told once: that it was frozen until now and
  /// has thawed, or why that is not so.
  void Thaw(Done done);
  bool frozen() const { return phase_ == Phase::kFrozen; }

  void VisitCounters(const vmm::CounterVisitor& visit) const override;

 private:
  enum class Phase { kIdle, kChecking, kFreezing, kFrozen, kThawing };

  void OnNegotiated() override;
  void OnResponse(uint32_t status, std::span<const uint8_t> body) override;
  void OnLateResponse(std::span<const uint8_t> body) override;
  void OnSessionEnd() override;
  void OnStart() override;
  void OnStop() override;
  void ResetState() override;
  void SaveState(state::IntegrationService* state) const override;
  bool RestoreState(const state::IntegrationService& state) override;

  bool ready() const { return started_ && version().has_value(); }
  vmm::Error NotReady() const;
  bool Send(uint8_t operation);
  void SendFreeze();
  void OnFreezeTimeout(uint64_t timeout_ns);
  void OnFrozen();
  void EndFreeze(vmm::Error why);
  void BeginThaw();
  void SendThaw();
  void OnThawTimer();
  void OnThawAnswer(uint32_t status);
  void GiveUpThaw();
  void Interrupt(const vmm::Error& why);
  void SetTimer(uint64_t delay_ns, vmm::Loop::Task task);
  void TellFreeze(const vmm::Result<void>& result);
  void TellThaw(const vmm::Result<void>& result);

  const Options options_;

  // Book-keeping: of whoever calls, and of what is under way while the machine runs.
  bool started_ = false;
  Phase phase_ = Phase::kIdle;
  vmm::Loop::TimerId timer_ = 0;
  Done freeze_done_;
  Done thaw_done_;
  bool thawed_in_time_ = false;  ///< what thaw_done_ hears of: it was frozen until it was called
  std::string early_end_;        ///< why the last freeze ended without it; empty: there was none
  unsigned attempts_ = 0;
  bool once_more_ = false;  ///< a freeze was confirmed while its thaw was under way

  // State.
  bool thaw_owed_ = false;
  uint32_t unanswered_freezes_ = 0;

  vmm::Counter freezes_;
  vmm::Counter early_ends_;
  vmm::Counter thaw_repeats_;
  vmm::Counter thaws_given_up_;
};

}  // namespace kvmbus::virtdev
