// SPDX-License-Identifier: Apache-2.0
/// \file
/// Where a disk keeps the reservations that outlive a loss of power: a small file beside its image.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "virtdev/scsi/persistent_reservations.h"
#include "vmm/result/result.h"

namespace kvmbus::cmd {

/// The file, `<path of the image>.reservations`; there only while an initiator wants them kept. Any
/// thread.
class ReservationsFile {
 public:
  explicit ReservationsFile(const std::string& image) : name_(NameFor(image)) {}

  /// "" if there is none. Called once, by who has opened the image for writing: what an earlier
  /// owner of the image had not finished is removed.
  vmm::Result<std::string> Load() const;
  bool Store(const std::string& state);

  /// The disk is about to be at another path: both names have the state from now on, until
  /// EndMove tells which one counts.
  vmm::Result<void> BeginMove(const std::string& image);
  void EndMove(bool moved);

 private:
  static std::string NameFor(const std::string& image) { return image + ".reservations"; }
  vmm::Result<std::string> LoadLocked() const;
  bool StoreLocked(const std::string& name, const std::string& state);

  mutable std::mutex mutex_;
  std::string name_;
  std::string next_name_;  // "" unless it is being moved
};

struct DiskReservations {
  std::shared_ptr<virtdev::PersistentReservations> state;
  std::shared_ptr<ReservationsFile> file;
};

/// Those of the disk at `path`. kDataLoss: their file is damaged.
vmm::Result<DiskReservations> OpenReservations(const std::string& path);

}  // namespace kvmbus::cmd
