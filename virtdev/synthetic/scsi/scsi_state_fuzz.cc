// SPDX-License-Identifier: Apache-2.0
// Saved states of a SCSI controller and of a disk's reservations from hostile files: what is
// refused changes nothing, what is taken is saved and restored as the same bytes, and a guest may
// go on in it with any command. So may it in what its own commands lead to.
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "state/scsi.pb.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/hostile_state.h"
#include "virtdev/scsi/reservations_fuzz.h"
#include "virtdev/synthetic/scsi/scsi_fuzz_machine.h"
#include "vmm/os/log.h"

namespace {

using namespace kvmbus;           // NOLINT: a fuzz target is a program
using namespace kvmbus::virtdev;  // NOLINT
using Input = tests::FuzzInput;
using scsi_fuzz::kChannels;
using scsi_fuzz::Machine;

/// Fields of the whole, of one unit, or of its reservations are hostile.
std::string HostileController(Input& input, const std::string& valid) {
  const uint8_t part = input.Byte();
  const int lun = part / 4 % 3;
  state::SyntheticScsi message;
  KVMBUS_ASSERT(message.ParseFromString(valid) && message.luns_size() == 3);
  state::ScsiLun* entry = message.mutable_luns(lun);
  if (part % 4 == 0) {
    if (entry->ParseFromString(tests::HostileState(input, entry->SerializeAsString())))
      return message.SerializeAsString();
  } else if (part % 4 == 1) {
    state::ScsiReservations* rules = entry->mutable_reservations();
    if (rules->ParseFromString(tests::HostileState(input, rules->SerializeAsString())))
      return message.SerializeAsString();
  }
  return tests::HostileState(input, valid);
}

/// What the controller saves, another one takes, as the same bytes.
std::string CheckSaves(Machine& machine, vmm::GuestMemory& memory, vmm::Loop& loop, bool has_disc,
                       unsigned open) {
  const std::string saved = *machine.controller().Save();
  Machine other(memory, loop, has_disc);
  KVMBUS_ASSERT(other.Restore(saved, open).ok());
  KVMBUS_ASSERT(*other.controller().Save() == saved);
  return saved;
}

/// A new session, as after any boot.
void CheckBoot(Machine& machine) {
  machine.CloseAll();
  machine.controller().Reset();
  machine.controller().Start();
  machine.Open(0);
  machine.Open(1);
  machine.Send(1, 0, 0, 0);
  KVMBUS_ASSERT(machine.channel(1).unread() == 1);  // there is no session yet
  machine.Handshake();
  KVMBUS_ASSERT(machine.channel(0).unread() == 0 && machine.channel(1).unread() == 0);
}

void RunController(Input& input, vmm::GuestMemory& memory, vmm::Loop& loop) {
  const uint8_t shape = input.Byte();
  const bool has_disc = (shape & 8) == 0;
  Machine machine(memory, loop, has_disc);
  machine.controller().Start();
  machine.Open(0);
  if ((shape & 0x10) == 0) machine.Handshake();
  if ((shape & 2) != 0) machine.Open(1);
  if ((shape & 4) != 0) machine.Open(2);
  for (uint8_t commands = input.Byte() % 32; commands != 0 && !input.empty(); --commands) {
    const uint8_t lun = input.Byte(), which = input.Byte();
    machine.Send(0, lun, which, input.Word());
  }
  machine.controller().Stop();
  const std::string valid = CheckSaves(machine, memory, loop, has_disc, 1 | (shape & 6));
  machine.CloseAll();
  const std::string before = *machine.controller().Save();
  const unsigned open = shape >> 5 & 7;
  if (machine.Restore(HostileController(input, valid), open).ok()) {
    (void)CheckSaves(machine, memory, loop, has_disc, open);
    machine.controller().Start();
    machine.Settle();
    std::minstd_rand random(1u + shape);
    for (int i = 0; i < 20; ++i) {
      const auto index = static_cast<uint16_t>(random() % kChannels);
      const auto lun = static_cast<uint8_t>(random()), which = static_cast<uint8_t>(random());
      if ((open >> index & 1) != 0)
        machine.Send(index, lun, which, static_cast<uint16_t>(random() >> 8));
    }
    machine.controller().Stop();
    (void)CheckSaves(machine, memory, loop, has_disc, open);
  } else {
    KVMBUS_ASSERT(*machine.controller().Save() == before);
  }
  CheckBoot(machine);
}

/// A disk's own, of a saved machine or of the file beside the image.
void RunReservations(Input& input) {
  const uint8_t shape = input.Byte();
  PersistentReservations rules((shape & 1) != 0 ? [](const std::string&) { return true; }
                                                : PersistentReservations::Store());
  (void)rules.HandleOut({}, {.action = 0, .action_key = 1, .persist = (shape & 2) != 0});
  (void)rules.HandleOut({}, {.action = 1, .type = 5, .key = 1});
  state::ScsiReservations saved, after;
  rules.Save(&saved);
  const std::string before = saved.SerializeAsString();
  const std::string state = tests::HostileState(input, before);
  state::ScsiReservations hostile;
  const bool parsed = hostile.ParseFromString(state);
  const bool taken = (shape & 4) != 0 ? rules.RestorePersistent(state).ok()
                                      : parsed && rules.Restore(hostile).ok();
  rules.Save(&after);
  KVMBUS_ASSERT(taken || after.SerializeAsString() == before);
  CheckReservations(rules);
  for (uint8_t action = 0; action < 4; ++action) {
    std::vector<uint8_t> answer;
    (void)rules.HandleIn(action, &answer);
    KVMBUS_ASSERT(answer.size() <= 8 + 48 * PersistentReservations::kMaxRegistrations);
  }
  const vmm::Guid other = {{1}};
  (void)rules.TakeAttention({});
  (void)rules.HandleOut(other, {.action = 6, .action_key = 2});
  (void)rules.HandleOut(other, {.action = 4, .type = 6, .key = 2, .action_key = 1});
  CheckReservations(rules);
  rules.ResetInitiator({});
  rules.PowerCycle();
  CheckReservations(rules);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  spdlog::set_level(spdlog::level::off);
  static const std::unique_ptr<vmm::GuestMemory> memory = [] {
    const vmm::MemoryRange ranges[] = {{0, 16 * vmm::kPageSize}};
    return *vmm::GuestMemory::Create(ranges);
  }();
  static const std::unique_ptr<vmm::Loop> loop = *vmm::Loop::Create();
  Input input(bytes, size);
  if (input.Byte() % 4 != 3)
    RunController(input, *memory, *loop);
  else
    RunReservations(input);
  return 0;
}
