// SPDX-License-Identifier: Apache-2.0
// The board's disks, changed while the guest uses them.
#include <sys/stat.h>

#include <cerrno>

#include "cmd/vmm/board.h"
#include "virtdev/disk/live/live_disk.h"

namespace kvmbus::cmd {

using vmm::Code;
using vmm::Error;
using vmm::MakeError;
using vmm::Result;

Error Board::IsChanging(const Disk& disk) {
  return MakeError(Code::kFailedPrecondition,
                   "disk '{}' is being changed: wait for the end of that, or end the command that "
                   "changes it",
                   disk.path);
}

Result<Board::Disk*> Board::FindForChange(uint32_t controller, uint32_t lun) {
  const auto at = disks_.find({controller, lun});
  if (at == disks_.end() || at->second.is_dvd || at->second.io->live() == nullptr)
    return NoDisk(controller, lun);
  if (at->second.change != nullptr) return IsChanging(at->second);
  return &at->second;
}

void Board::StartChange(uint32_t controller, uint32_t lun, DiskChange::Work work, Done done) {
  Disk& disk = disks_.at({controller, lun});
  disk.files = disk.io->live()->chain().paths();
  disk.change = std::make_unique<DiskChange>(
      loop_, std::move(work), [this, controller, lun, done](const Result<void>& result) {
        Disk& changed = disks_.at({controller, lun});
        changed.change.reset();
        changed.child.clear();
        const std::string before = FollowTop(changed);
        if (result.ok()) return done({});
        Error error = result.error();
        done(std::move(error).WithContext(fmt::format("disk '{}'", before)));
      });
}

/// Its path is that of its top, whatever became of the move; the former one.
std::string Board::FollowTop(Disk& disk) {
  const std::string before = std::exchange(disk.path, disk.io->live()->chain().paths().front());
  if (disk.reservations != nullptr) disk.reservations->EndMove(disk.path != before);
  return before;
}

/// What goes with a disk to another path.
virtdev::TopMoves Board::Carry(const std::shared_ptr<ReservationsFile>& reservations) {
  return [reservations](const std::string& path) -> Result<void> {
    if (reservations == nullptr) return {};
    return reservations->BeginMove(path);
  };
}

void Board::ResizeDisk(uint32_t controller, uint32_t lun, uint64_t size_bytes, Done done) {
  const auto disk = FindForChange(controller, lun);
  if (!disk.ok()) return done(disk.error());
  StartChange(
      controller, lun,
      [io = (*disk)->io, size_bytes](const virtdev::Progress&) {
        return virtdev::ResizeLiveDisk(*io->live(), size_bytes);
      },
      std::move(done));
}

void Board::CreateChild(uint32_t controller, uint32_t lun, const std::string& path, Done done) {
  const auto disk = FindForChange(controller, lun);
  if (!disk.ok()) return done(disk.error());
  (*disk)->child = path;
  StartChange(
      controller, lun,
      [io = (*disk)->io, path, moves = Carry((*disk)->reservations)](const virtdev::Progress&) {
        return virtdev::CreateLiveChild(*io->live(), path, moves);
      },
      std::move(done));
}

void Board::MergeDisk(uint32_t controller, uint32_t lun, uint32_t layer, Done done) {
  const auto disk = FindForChange(controller, lun);
  if (!disk.ok()) return done(disk.error());
  StartChange(
      controller, lun,
      [io = (*disk)->io, layer,
       moves = Carry((*disk)->reservations)](const virtdev::Progress& progress) {
        const auto files = virtdev::MakeHostMergeFiles();
        return virtdev::MergeLiveLayer(*io->live(), layer, *files, progress, moves);
      },
      std::move(done));
}

Result<void> Board::CancelDiskChange(uint32_t controller, uint32_t lun) {
  const auto at = disks_.find({controller, lun});
  if (at == disks_.end() || at->second.change == nullptr)
    return MakeError(Code::kNotFound, "no change of a disk on SCSI controller {} at location {}",
                     controller, lun);
  at->second.change->Cancel();
  return {};
}

void Board::NameChildren(config::Vm* vm) const {
  for (config::Disk& disk : *vm->mutable_disks()) {
    const auto at = disks_.find({disk.controller(), disk.lun()});
    disk.set_next(at == disks_.end() ? "" : at->second.child);
  }
}

Result<worker::DiskPlace> Board::FindDisk(const std::string& path) const {
  struct stat wanted = {};
  if (::stat(path.c_str(), &wanted) < 0) return Error::FromErrno(errno, fmt::format("'{}'", path));
  for (const auto& [slot, disk] : disks_) {
    if (disk.is_dvd || disk.io == nullptr || disk.io->live() == nullptr) continue;
    const std::vector<std::string> files =
        disk.change != nullptr ? disk.files : disk.io->live()->chain().paths();
    for (size_t layer = 0; layer < files.size(); ++layer) {
      struct stat found = {};
      if (::stat(files[layer].c_str(), &found) < 0 || found.st_dev != wanted.st_dev ||
          found.st_ino != wanted.st_ino)
        continue;
      worker::DiskPlace place;
      place.set_controller(slot.first);
      place.set_lun(slot.second);
      place.set_layer(static_cast<uint32_t>(layer));
      place.set_path(files.front());
      if (disk.change != nullptr) {
        place.set_changing(true);
        place.set_done(disk.change->done());
        place.set_total(disk.change->total());
      }
      return place;
    }
  }
  return MakeError(Code::kNotFound, "no disk uses '{}'", path);
}

}  // namespace kvmbus::cmd
