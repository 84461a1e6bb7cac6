// SPDX-License-Identifier: Apache-2.0
/// \file
/// SyntheticScsiController: the SCSI controller that Hyper-V's guests drive over VMBus (storvsp).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "virtdev/disk/disk_io.h"
#include "virtdev/scsi/scsi_disk.h"
#include "virtdev/scsi/scsi_dvd.h"
#include "virtdev/shared_disk/remote_scsi_disk.h"
#include "virtdev/synthetic/scsi/scsi_channel.h"
#include "virtdev/vmbus/channel.h"
#include "vmm/event/loop.h"

namespace kvmbus::state {
class ScsiLun;
class SyntheticScsi;
}  // namespace kvmbus::state

namespace kvmbus::virtdev {

/// Up to 64 disks and DVD drives at path 0, target 0. Home: the main loop, like every VmbusDevice;
/// each channel lives on one of the io loops with queues of its own, so that requests cross no
/// lock.
class SyntheticScsiController final : public VmbusDevice {
 public:
  static constexpr uint8_t kMaxLuns = ScsiChannel::kMaxLuns;

  struct Options {
    std::string name = "scsi/0";  ///< unique on the bus; of saved state and log lines
    vmm::Guid instance_id;        ///< stable for the life of the virtual machine
    uint32_t vcpus = 1;
    /// Sub-channels that a guest may ask for; never more than vcpus - 1.
    uint16_t max_sub_channels = 63;
    uint32_t max_transfer_bytes = 1u << 20;  ///< of one request; a multiple of a page
    unsigned queue_depth = 256;              ///< requests under way on one channel
    /// How long a guest that is asked for a disc may take to let it go.
    uint64_t eject_wait_ns = 15'000'000'000;
  };

  /// The loops must run (or, in tests, be turned by hand) until this object is gone.
  SyntheticScsiController(Options options, vmm::Loop& main_loop, std::vector<vmm::Loop*> io_loops);
  /// Closes what is open. Destroy it after the bus forgot it (VmbusServer::RemoveDevice).
  ~SyntheticScsiController() override;

  /// Inserts a disk, at power-on or into a running guest, which is told.
  /// Errors: kInvalidArgument (LUN, or a disk whose size makes no sense), kAlreadyExists.
  vmm::Result<void> AttachDisk(uint8_t lun, std::shared_ptr<DiskIo> disk,
                               ScsiDisk::Options options = {});

  /// Inserts a disk that another process owns. Errors as AttachDisk's.
  vmm::Result<void> AttachSharedDisk(uint8_t lun, std::shared_ptr<RemoteDisk> disk);

  /// Takes the disk out, or the DVD drive (its disc may be null): the guest sees it no more from
  /// now on. Requests under way finish; then `done` runs on the main loop with the disk, of which
  /// no queue is left: Close() it there. It runs even if this controller is gone meanwhile. Error:
  /// kNotFound.
  using DetachDone = std::function<void(std::shared_ptr<DiskIo> disk)>;
  vmm::Result<void> DetachDisk(uint8_t lun, DetachDone done);

  // scsi_controller_dvd.cc

  /// Inserts a DVD drive, with a disc or without. Errors as AttachDisk's.
  vmm::Result<void> AttachDvd(uint8_t lun, std::shared_ptr<DiskIo> medium);
  /// Puts a disc in, in place of the one that is in. `done` as of DetachDisk, with that one or
  /// null. Errors: kNotFound (no drive), kFailedPrecondition (the guest holds the disc that is in),
  /// kInvalidArgument (no image of a disc).
  vmm::Result<void> InsertMedium(uint8_t lun, std::shared_ptr<DiskIo> medium, DetachDone done);
  /// Takes the disc out. Unless forced, a guest that holds it is asked first. `done` runs on the
  /// main loop, perhaps before this returns: the disc, of which no queue is left, or null if there
  /// was none; or kNotFound, or kFailedPrecondition: the guest did not let it go.
  using EjectDone = std::function<void(const vmm::Result<std::shared_ptr<DiskIo>>&)>;
  void EjectMedium(uint8_t lun, bool force, EjectDone done);

  // VmbusDevice
  std::string_view device_name() const override { return options_.name; }
  const ChannelOffer& offer() const override { return offer_; }
  void OnOffered(OfferHandle* handle) override { offer_handle_ = handle; }
  void OnRevoked() override { offer_handle_ = nullptr; }
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

 private:
  /// One of the three.
  struct Unit {
    std::shared_ptr<ScsiDisk> disk;
    std::shared_ptr<ScsiDvd> dvd;
    std::shared_ptr<RemoteScsiDisk> shared;
    ScsiChannel::Lun lun() const {
      if (disk != nullptr) return {disk, disk->io()};
      if (shared != nullptr) return {shared, shared->io()};
      return {dvd, dvd->medium()};
    }
  };
  struct PendingEject {
    EjectDone done;
    vmm::Loop::TimerId timer = 0;
  };

  vmm::Loop& LoopFor(const Channel& channel) const;
  std::shared_ptr<ScsiChannel> MakeChannel(uint16_t index, std::unique_ptr<Channel> channel);
  void OnSubChannelsWanted(uint16_t count);
  /// Runs `task` for each open channel on its loop, after what was posted there before.
  void PostToChannels(std::function<void(ScsiChannel&)> task);
  void AnnounceLunChange();
  vmm::Result<void> CheckFree(uint8_t lun) const;
  void Insert(uint8_t lun);
  static vmm::Result<void> SaveLun(const Unit& unit, state::ScsiLun* entry);
  static vmm::Result<void> RestoreLun(const Unit& unit, const state::ScsiLun& entry);
  void SwapMedium(uint8_t lun, std::shared_ptr<DiskIo> medium, DetachDone done);
  void OnTrayOpened(uint8_t lun);
  void FinishEject(uint8_t lun, const vmm::Result<std::shared_ptr<DiskIo>>& result);
  vmm::Result<void> CheckSavedLuns(const state::SyntheticScsi& saved) const;

  // Configuration.
  const Options options_;
  ChannelOffer offer_;
  // Collaborators.
  vmm::Loop& main_loop_;
  const std::vector<vmm::Loop*> io_loops_;
  OfferHandle* offer_handle_ = nullptr;
  // Book-keeping.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  ///< for tasks posted to main
  ScsiChannel::Shared shared_;
  std::map<uint16_t, std::shared_ptr<ScsiChannel>> channels_;  ///< the open ones, by index
  std::map<uint8_t, PendingEject> ejects_;                     ///< the guest was asked, by LUN
  // State (the session's is the primary channel's).
  std::map<uint8_t, Unit> units_;
};

}  // namespace kvmbus::virtdev
