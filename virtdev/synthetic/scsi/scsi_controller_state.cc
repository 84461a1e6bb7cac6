// SPDX-License-Identifier: Apache-2.0
// What is saved of a controller's units.
#include <algorithm>

#include "state/scsi.pb.h"
#include "virtdev/synthetic/scsi/scsi_controller.h"

namespace kvmbus::virtdev {

using vmm::Code;
using vmm::MakeError;
using vmm::Result;

namespace {

void SaveSense(const scsi::Sense& sense, state::ScsiLun* entry) {
  entry->set_sense_key(static_cast<uint32_t>(sense.key));
  entry->set_sense_asc(sense.asc);
  entry->set_sense_ascq(sense.ascq);
}

scsi::Sense SavedSense(const state::ScsiLun& entry) {
  return {static_cast<scsi::SenseKey>(entry.sense_key()), static_cast<uint8_t>(entry.sense_asc()),
          static_cast<uint8_t>(entry.sense_ascq())};
}

ScsiDvd::State SavedDvd(const state::ScsiLun& entry) {
  const state::ScsiDvd& saved = entry.dvd();
  ScsiDvd::State state;
  state.tray_open = saved.tray_open();
  state.locked = saved.locked();
  state.locked_persistently = saved.locked_persistently();
  state.events = static_cast<uint8_t>(saved.events());
  state.attention = saved.attention();
  state.stored_sense = SavedSense(entry);
  std::copy_n(saved.medium().begin(), std::min(saved.medium().size(), state.medium.bytes.size()),
              state.medium.bytes.begin());
  state.blocks = static_cast<uint32_t>(saved.blocks());
  return state;
}

bool DvdIsValid(const state::ScsiLun& entry) {
  const state::ScsiDvd& saved = entry.dvd();
  const size_t id_bytes = saved.blocks() == 0 ? 0 : sizeof(vmm::Guid::bytes);
  return saved.events() <= 0xff && saved.blocks() <= 0xffffffff &&
         saved.medium().size() == id_bytes && ScsiDvd::IsValid(SavedDvd(entry));
}

bool EntryIsValid(const state::ScsiLun& entry) {
  if (entry.sense_key() > 0xf || entry.sense_asc() > 0xff || entry.sense_ascq() > 0xff)
    return false;
  return entry.has_dvd() ? DvdIsValid(entry) : entry.reported_sectors() != 0;
}

}  // namespace

Result<void> SyntheticScsiController::SaveLun(const Unit& unit, state::ScsiLun* entry) {
  if (unit.dvd == nullptr) {
    const ScsiDisk::State state =
        unit.disk != nullptr ? unit.disk->Save() : TRY(unit.shared->Save());
    entry->set_reported_sectors(state.reported_sectors);
    SaveSense(state.stored_sense, entry);
    // A shared disk's reservations are its owner's.
    state::ScsiReservations reservations;
    if (unit.disk != nullptr && !unit.disk->is_shared())
      unit.disk->reservations().Save(&reservations);
    if (reservations.ByteSizeLong() != 0) *entry->mutable_reservations() = reservations;
    return {};
  }
  const ScsiDvd::State state = unit.dvd->Save();
  SaveSense(state.stored_sense, entry);
  state::ScsiDvd* saved = entry->mutable_dvd();
  saved->set_tray_open(state.tray_open);
  saved->set_locked(state.locked);
  saved->set_locked_persistently(state.locked_persistently);
  saved->set_events(state.events);
  saved->set_attention(state.attention);
  if (state.blocks != 0) saved->set_medium(state.medium.ToBytes());
  saved->set_blocks(state.blocks);
  return {};
}

Result<void> SyntheticScsiController::CheckSavedLuns(const state::SyntheticScsi& saved) const {
  int64_t previous = -1;
  for (const state::ScsiLun& entry : saved.luns()) {
    if (!EntryIsValid(entry) || int64_t{entry.lun()} <= previous || entry.lun() >= kMaxLuns)
      return MakeError(Code::kDataLoss, "saved state of LUN {} is not valid", entry.lun());
    previous = entry.lun();
    const auto at = units_.find(static_cast<uint8_t>(entry.lun()));
    if (at == units_.end() || (at->second.dvd != nullptr) != entry.has_dvd())
      return MakeError(Code::kFailedPrecondition,
                       "the saved machine has a {} at LUN {}; attach it first",
                       entry.has_dvd() ? "DVD drive" : "disk", entry.lun());
    const std::shared_ptr<ScsiDisk>& disk = at->second.disk;
    if (disk != nullptr && !disk->is_shared())
      TRY_VOID_CTX(disk->reservations().Check(entry.reservations()), "LUN {}", entry.lun());
  }
  return {};
}

/// Checked before; what may still fail changes nothing of the unit.
Result<void> SyntheticScsiController::RestoreLun(const Unit& unit, const state::ScsiLun& entry) {
  if (unit.dvd != nullptr) {
    unit.dvd->Restore(SavedDvd(entry));
    return {};
  }
  const ScsiDisk::State state = {entry.reported_sectors(), SavedSense(entry)};
  // A shared disk's reservations are not its virtual machine's: they went on meanwhile.
  if (unit.shared != nullptr) return unit.shared->Restore(state);
  if (!unit.disk->is_shared()) TRY_VOID(unit.disk->reservations().Restore(entry.reservations()));
  unit.disk->Restore(state);
  return {};
}

}  // namespace kvmbus::virtdev
