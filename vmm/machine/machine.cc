// SPDX-License-Identifier: Apache-2.0
#include "vmm/machine/machine.h"

#include <algorithm>

#include "vmm/machine/ram_copy.h"
#include "vmm/machine/state_stream.h"
#include "vmm/os/log.h"

namespace kvmbus::vmm {

Machine::Machine(Loop& loop, GuestMemory& memory, std::unique_ptr<Vm> vm, Callbacks callbacks)
    : loop_(loop),
      memory_(memory),
      vm_(std::move(vm)),
      callbacks_(std::move(callbacks)),
      threads_(*vm_, *this) {
  units_.push_back(vm_.get());
}

Machine::~Machine() {
  threads_.Park();  // the units may be gone already; whoever ran the machine has turned it off
}

void Machine::AddUnit(StateUnit& unit) {
  KVMBUS_ASSERT(state_ == MachineState::kOff);
  for (const StateUnit* other : units_) KVMBUS_ASSERT(other->unit_name() != unit.unit_name());
  units_.push_back(&unit);
}

void Machine::ChangeState(MachineState state, std::string reason) {
  KVMBUS_ASSERT(MayChange(state_, state));
  state_ = state;
  reason_ = std::move(reason);
  spdlog::info("{}{}{}", MachineStateName(state_), reason_.empty() ? "" : ": ", reason_);
  if (callbacks_.changed) callbacks_.changed();
}

uint64_t Machine::uptime_ns() const {
  return state_ == MachineState::kOff ? 0 : loop_.clock().MonotonicNs() - power_on_ns_;
}

void Machine::StartUnits() {
  for (StateUnit* unit : units_) unit->Start();
}

void Machine::StopUnits() {
  for (auto unit = units_.rbegin(); unit != units_.rend(); ++unit) (*unit)->Stop();
}

void Machine::ResetUnits() {
  for (StateUnit* unit : units_) unit->Reset();
}

Result<void> Machine::LoadBoot() {
  const BootState boot = TRY(boot_loader_());
  return vm_->vcpu(0).SetBootState(boot);
}

Result<void> Machine::PowerOn() {
  TRY_VOID(CheckChange(state_, MachineState::kStarting));
  ChangeState(MachineState::kStarting);
  if (power_on_ns_ != 0) ResetUnits();
  power_on_ns_ = loop_.clock().MonotonicNs();
  auto loaded = LoadBoot();
  if (!loaded.ok()) {
    ChangeState(MachineState::kOff, loaded.error().ToString());
    return loaded;
  }
  StartUnits();
  ChangeState(MachineState::kRunning);
  threads_.Run();
  return {};
}

Result<void> Machine::PowerOnFrom(std::string_view stream) {
  TRY_VOID(CheckChange(state_, MachineState::kStarting));
  ChangeState(MachineState::kStarting);
  power_on_ns_ = loop_.clock().MonotonicNs();
  auto restored = RestoreUnits(stream);
  if (!restored.ok()) {
    ChangeState(MachineState::kOff, restored.error().ToString());
    return restored;
  }
  ChangeState(MachineState::kPaused, "restored");
  return {};
}

Result<void> Machine::BeginSaving() {
  TRY_VOID(CheckChange(state_, MachineState::kSaving));
  ChangeState(MachineState::kSaving);
  return {};
}

Result<void> Machine::GiveUpSaving() {
  if (state_ != MachineState::kSaving) return CheckChange(state_, MachineState::kPaused);
  ChangeState(MachineState::kPaused);
  return {};
}

Result<void> Machine::MarkSaved() {
  TRY_VOID(CheckChange(state_, MachineState::kSaved));
  ChangeState(MachineState::kSaved);
  return {};
}

Result<void> Machine::Pause() {
  TRY_VOID(CheckChange(state_, MachineState::kPausing));
  ChangeState(MachineState::kPausing);
  threads_.Park();
  StopUnits();
  ChangeState(MachineState::kPaused);
  return {};
}

Result<void> Machine::Resume() {
  if (state_ != MachineState::kPaused) return CheckChange(state_, MachineState::kRunning);
  StartUnits();
  ChangeState(MachineState::kRunning);
  threads_.Run();
  return {};
}

Result<void> Machine::TurnOff(Code code, std::string reason) {
  TRY_VOID(CheckChange(state_, MachineState::kStopping));
  ChangeState(MachineState::kStopping, reason);
  threads_.Park();
  StopUnits();
  ChangeState(MachineState::kOff, reason);
  if (callbacks_.ended) callbacks_.ended(code, std::move(reason));
  return {};
}

Result<std::string> Machine::SaveUnits() {
  if (state_ != MachineState::kPaused && state_ != MachineState::kSaving)
    return MakeError(Code::kFailedPrecondition, "the virtual machine is {}, not Paused",
                     MachineStateName(state_));
  std::vector<StateRecord> records;
  for (StateUnit* unit : units_) {
    StateRecord record{std::string(unit->unit_name()), unit->schema_version(),
                       unit->minimum_reader(), false, ""};
    record.payload = TRY_CTX(unit->Save(), "saving '{}'", unit->unit_name());
    records.push_back(std::move(record));
  }
  return WriteStateStream(records);
}

Result<void> Machine::RestoreUnits(std::string_view stream) {
  const std::vector<StateRecord> records = TRY(ReadStateStream(stream));
  const auto unit_of = [this](const StateRecord& record) -> StateUnit* {
    const auto at = std::find_if(units_.begin(), units_.end(), [&](const StateUnit* unit) {
      return unit->unit_name() == record.name;
    });
    return at == units_.end() ? nullptr : *at;
  };
  for (const StateRecord& record : records) {
    const StateUnit* unit = unit_of(record);
    if (unit == nullptr && !record.optional)
      return MakeError(Code::kFailedPrecondition, "the saved state has '{}', this machine has not",
                       record.name);
    if (unit != nullptr && record.minimum_reader > unit->schema_version())
      return MakeError(
          Code::kUnimplemented,
          "the saved state of '{}' needs a newer program (schema {}, this one reads {})",
          record.name, record.minimum_reader, unit->schema_version());
  }
  for (const StateRecord& record : records) {
    StateUnit* unit = unit_of(record);
    if (unit != nullptr)
      TRY_VOID_CTX(unit->Restore(record.schema_version, record.payload), "restoring '{}'",
                   record.name);
  }
  return {};
}

Result<void> Machine::Pulse() {
  const bool running = state_ == MachineState::kRunning;
  if (running) TRY_VOID(Pause());
  const std::string first = TRY(SaveUnits());
  RamCopy ram = TRY(RamCopy::Take(memory_));
  ResetUnits();
  auto restored = RamCopy::Clear(memory_);
  if (restored.ok()) restored = ram.PutBack(memory_);
  if (restored.ok()) restored = RestoreUnits(first);
  if (!restored.ok()) {
    // Half restored, the guest must not run on.
    (void)TurnOff(Code::kInternal, fmt::format("a pulse failed: {}", restored.error().ToString()));
    return restored;
  }
  return running ? Resume() : Result<void>();
}

void Machine::RequestPowerOff(std::string reason) {
  loop_.Post([this, reason = std::move(reason)] {
    if (MayChange(state_, MachineState::kStopping)) (void)TurnOff(Code::kOk, reason);
  });
}

void Machine::OnResetRequest(std::string_view why) {
  if (reset_posted_.exchange(true)) return;
  loop_.Post([this, why = std::string(why)] { Reboot(why); });
}

void Machine::Reboot(const std::string& why) {
  reset_posted_ = false;
  const bool running = state_ == MachineState::kRunning;
  if (!running && state_ != MachineState::kPaused) return;
  spdlog::info("reset: {}", why);
  threads_.Park();
  StopUnits();
  ResetUnits();
  ++reboots_;
  const auto loaded = LoadBoot();
  if (!loaded.ok()) {
    (void)TurnOff(loaded.error().code(),
                  fmt::format("the reset failed: {}", loaded.error().ToString()));
    return;
  }
  if (callbacks_.changed) callbacks_.changed();
  if (!running) return;
  StartUnits();
  threads_.Run();
}

void Machine::OnGuestCrash(const GuestCrashReport& report) {
  loop_.Post([this, report] {
    if (callbacks_.crashed) callbacks_.crashed(report);
  });
}

void Machine::OnVcpuFailure(uint32_t index, Error error) {
  loop_.Post([this, index, text = error.ToString()] {
    if (MayChange(state_, MachineState::kStopping))
      (void)TurnOff(Code::kInternal, fmt::format("virtual processor {}: {}", index, text));
  });
}

void Machine::VisitCounters(const CounterVisitor& visit) const {
  for (const StateUnit* unit : units_) unit->VisitCounters(visit);
  visit("port_unclaimed", ports_.unclaimed());
  visit("mmio_unclaimed", mmio_.unclaimed());
}

}  // namespace kvmbus::vmm
