// SPDX-License-Identifier: Apache-2.0
#include "virtdev/synthetic/ic/vss.h"

#include <utility>

#include "vmm/os/log.h"

namespace kvmbus::virtdev {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;

namespace {

constexpr vmm::Guid kInterface = vmm::MakeGuid("35fa2e29-ea23-4236-96ae-3a6ebacba440");
constexpr uint64_t kSecondNs = 1'000'000'000;

Error TakesNoMessages() {
  return Error(Code::kUnavailable, "the guest does not take messages now; try again");
}

bool IsFreeze(std::span<const uint8_t> body) { return !body.empty() && body[0] == ic::kVssFreeze; }

}  // namespace

VssDevice::VssDevice(std::string name, const vmm::Guid& instance_id, vmm::Loop& loop,
                     Options options)
    // Linux knows version 5.0 alone; later ones add what only shared disks of Windows need.
    : IcDevice(std::move(name), ic::kTypeVss, kInterface, instance_id, {{5, 0}}, loop),
      options_(options) {}

VssDevice::~VssDevice() { loop().CancelTimer(timer_); }

// --- the freeze ---

void VssDevice::Freeze(uint64_t timeout_ns, Done done) {
  if (!ready()) return done(NotReady());
  if (phase_ == Phase::kThawing)
    return done(Error(Code::kUnavailable,
                      "the guest has not thawed yet from an earlier freeze; try again later"));
  if (phase_ != Phase::kIdle)
    return done(Error(Code::kUnavailable, "the guest is being frozen, or is frozen, already"));
  if (thaw_owed_)
    return done(Error(Code::kFailedPrecondition,
                      "the guest never confirmed that it thawed from an earlier freeze; see that "
                      "its backup service runs, and thaw it first"));
  // There are no disks here that a guest has directly, of which operation 3 would ask.
  if (!Send(ic::kVssCheckBackup)) return done(TakesNoMessages());
  phase_ = Phase::kChecking;
  freeze_done_ = std::move(done);
  early_end_.clear();
  SetTimer(timeout_ns, [this, timeout_ns] { OnFreezeTimeout(timeout_ns); });
}

void VssDevice::SendFreeze() {
  if (!Send(ic::kVssFreeze)) return EndFreeze(TakesNoMessages());
  freezes_.Add();
  phase_ = Phase::kFreezing;
  thaw_owed_ = true;
  ++unanswered_freezes_;
}

void VssDevice::OnFreezeTimeout(uint64_t timeout_ns) {
  timer_ = 0;
  const auto seconds = static_cast<double>(timeout_ns) / kSecondNs;
  if (phase_ == Phase::kChecking)
    return EndFreeze(MakeError(Code::kDeadlineExceeded,
                               "the guest's backup service did not answer in {} s", seconds));
  EndFreeze(MakeError(Code::kDeadlineExceeded,
                      "the guest did not freeze its file systems in {} s; try again while it "
                      "writes less, or with a longer timeout",
                      seconds));
}

void VssDevice::OnFrozen() {
  phase_ = Phase::kFrozen;
  SetTimer(options_.hold_limit_ns, [this] {
    timer_ = 0;
    KVMBUS_LOG_LIMITED("{}: nobody thawed the guest within the limit; it is thawed now",
                       device_name());
    EndFreeze(MakeError(Code::kDeadlineExceeded, "it was not thawed within the limit of {} s",
                        static_cast<double>(options_.hold_limit_ns) / kSecondNs));
  });
  TellFreeze({});
}

/// Without anybody's Thaw().
void VssDevice::EndFreeze(Error why) {
  AbandonTransaction();
  if (phase_ == Phase::kFrozen) early_ends_.Add();
  early_end_ = why.ToString();
  if (thaw_owed_) {
    BeginThaw();
  } else {
    phase_ = Phase::kIdle;
    SetTimer(0, nullptr);
  }
  TellFreeze(std::move(why));
}

// --- the thaw ---

void VssDevice::Thaw(Done done) {
  if (!ready()) return done(NotReady());
  if (thaw_done_) return done(Error(Code::kUnavailable, "the guest is being thawed already"));
  thawed_in_time_ = phase_ == Phase::kFrozen;
  thaw_done_ = std::move(done);
  if (phase_ == Phase::kChecking || phase_ == Phase::kFreezing) {
    EndFreeze(Error(Code::kCancelled, "a thaw was asked for while the guest was freezing"));
    if (phase_ == Phase::kThawing) return;  // by that
  }
  // One that waits for its next attempt makes it now.
  if (phase_ != Phase::kThawing || !transaction_pending()) return BeginThaw();
  attempts_ = 1;
}

void VssDevice::BeginThaw() {
  AbandonTransaction();
  phase_ = Phase::kThawing;
  attempts_ = 0;
  once_more_ = false;
  SendThaw();
}

void VssDevice::SendThaw() {
  if (++attempts_ > 1) thaw_repeats_.Add();
  SetTimer(Send(ic::kVssThaw) ? options_.thaw_answer_ns : options_.thaw_retry_ns,
           [this] { OnThawTimer(); });
}

/// No answer in time, or time for the next attempt.
void VssDevice::OnThawTimer() {
  timer_ = 0;
  const bool last = attempts_ >= options_.thaw_attempts;
  AbandonTransaction();
  if (last)
    GiveUpThaw();
  else
    SendThaw();
  TellThaw(Error(Code::kDeadlineExceeded,
                 "the guest has not confirmed that it thawed its file systems; it is asked again "
                 "for some minutes"));
}

void VssDevice::OnThawAnswer(uint32_t status) {
  if (status != 0) {
    if (attempts_ == 1)
      KVMBUS_LOG_LIMITED("{}: the guest did not thaw its file systems (status {:#x})",
                         device_name(), status);
    SetTimer(options_.thaw_retry_ns, [this] { OnThawTimer(); });
    return TellThaw(MakeError(
        Code::kFailedPrecondition,
        "the guest did not thaw its file systems (status {:#x}), they may be frozen still: its "
        "backup service has ended; start it again in the guest (hv_vss_daemon), it is asked again "
        "for some minutes",
        status));
  }
  if (once_more_) return BeginThaw();
  if (attempts_ > 1) spdlog::info("{}: the guest has thawed", device_name());
  phase_ = Phase::kIdle;
  thaw_owed_ = false;
  SetTimer(0, nullptr);
  if (!thaw_done_ || thawed_in_time_) return TellThaw({});
  if (const std::string why = std::exchange(early_end_, ""); !why.empty())
    return TellThaw(MakeError(Code::kFailedPrecondition,
                              "the guest was not frozen any more, so what was copied since is not "
                              "consistent: {}",
                              why));
  TellThaw(
      Error(Code::kFailedPrecondition, "the guest was not frozen; it was thawed all the same"));
}

void VssDevice::GiveUpThaw() {
  thaws_given_up_.Add();
  spdlog::error(
      "{}: the guest has not confirmed a thaw in {} attempts, its file systems may be frozen: see "
      "that its backup service runs, and thaw it ('vmctl vm thaw')",
      device_name(), attempts_);
  phase_ = Phase::kIdle;
}

// --- the session ---

void VssDevice::OnNegotiated() {
  if (thaw_owed_) BeginThaw();
}

void VssDevice::OnResponse(uint32_t status, std::span<const uint8_t> body) {
  // Ids come round again.
  if (phase_ != Phase::kFreezing && IsFreeze(body)) return OnLateResponse(body);
  switch (phase_) {
    case Phase::kChecking:
      if (status == 0) return SendFreeze();
      return EndFreeze(
          MakeError(Code::kFailedPrecondition,
                    "the guest cannot be backed up now (status {:#x}): install and start its "
                    "backup service (hv_vss_daemon, of Debian's hyperv-daemons)",
                    status));
    case Phase::kFreezing:
      if (unanswered_freezes_ != 0) --unanswered_freezes_;
      if (status == 0) return OnFrozen();
      return EndFreeze(MakeError(Code::kFailedPrecondition,
                                 "the guest could not freeze its file systems (status {:#x}); its "
                                 "own log says why",
                                 status));
    case Phase::kThawing:
      return OnThawAnswer(status);
    case Phase::kIdle:
    case Phase::kFrozen:
      return;  // nothing was asked
  }
}

/// Whatever a given-up freeze came to, a thaw follows it; one that was sent before its answer may
/// have been early.
void VssDevice::OnLateResponse(std::span<const uint8_t> body) {
  if (!IsFreeze(body) || !ready()) return;
  if (unanswered_freezes_ != 0) --unanswered_freezes_;
  thaw_owed_ = true;
  if (phase_ == Phase::kThawing)
    once_more_ = true;
  else if (phase_ == Phase::kIdle)
    BeginThaw();
  else
    EndFreeze(Error(Code::kAborted, "the guest answered an earlier freeze; try again"));
}

void VssDevice::OnSessionEnd() {
  // No answer will come to what was given up, though the guest may have obeyed by now.
  if (std::exchange(unanswered_freezes_, 0) != 0) thaw_owed_ = true;
  Interrupt(Error(Code::kUnavailable,
                  "the guest closed its backup service; it is thawed when it "
                  "opens it again"));
}

void VssDevice::OnStart() {
  started_ = true;
  if (ready() && thaw_owed_) BeginThaw();
}

void VssDevice::OnStop() {
  started_ = false;
  Interrupt(Error(Code::kCancelled,
                  "the virtual machine was stopped meanwhile; the guest is thawed when it runs "
                  "again"));
}

/// Nothing can be sent now; a thaw that is owed stays so.
void VssDevice::Interrupt(const Error& why) {
  if (phase_ == Phase::kIdle) return;
  AbandonTransaction();
  SetTimer(0, nullptr);
  if (phase_ == Phase::kFrozen) early_ends_.Add();
  if (phase_ != Phase::kThawing) early_end_ = why.ToString();
  phase_ = Phase::kIdle;
  TellFreeze(why);
  TellThaw(why);
}

void VssDevice::ResetState() {
  thaw_owed_ = false;
  unanswered_freezes_ = 0;
}

void VssDevice::SaveState(state::IntegrationService* state) const {
  state->set_thaw_owed(thaw_owed_);
  state->set_unanswered_freezes(unanswered_freezes_);
}

bool VssDevice::RestoreState(const state::IntegrationService& state) {
  thaw_owed_ = state.thaw_owed();
  unanswered_freezes_ = state.unanswered_freezes();
  return true;
}

// --- what the above share ---

Error VssDevice::NotReady() const {
  if (open() && !started_)
    return Error(Code::kFailedPrecondition, "the virtual machine does not run: resume it first");
  return Error(Code::kFailedPrecondition,
               "the guest's backup service is not ready: wait until it has booted and loaded "
               "hv_utils");
}

bool VssDevice::Send(uint8_t operation) {
  ic::VssBody body = {};
  body.operation = operation;
  return SendRequest({reinterpret_cast<const uint8_t*>(&body), sizeof(body)});
}

/// One timer, for whatever is waited for now; none for a null task.
void VssDevice::SetTimer(uint64_t delay_ns, vmm::Loop::Task task) {
  loop().CancelTimer(timer_);
  timer_ = task ? loop().AddTimer(delay_ns, std::move(task)) : 0;
}

void VssDevice::TellFreeze(const Result<void>& result) {
  if (const Done done = std::exchange(freeze_done_, nullptr)) done(result);
}

void VssDevice::TellThaw(const Result<void>& result) {
  if (const Done done = std::exchange(thaw_done_, nullptr)) done(result);
}

void VssDevice::VisitCounters(const vmm::CounterVisitor& visit) const {
  IcDevice::VisitCounters(visit);
  visit("vss_freezes", freezes_);
  visit("vss_freezes_ended_early", early_ends_);
  visit("vss_thaw_repeats", thaw_repeats_);
  visit("vss_thaws_given_up", thaws_given_up_);
}

}  // namespace kvmbus::virtdev
