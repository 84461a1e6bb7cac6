// SPDX-License-Identifier: Apache-2.0
/// \file
/// Board: the devices of one machine, built from its description and joined to the Machine.
#pragma once

#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cmd/vmm/capture_source.h"
#include "cmd/vmm/console_server.h"
#include "cmd/vmm/disk_change.h"
#include "cmd/vmm/disk_reservations.h"
#include "config/vm.pb.h"
#include "virtdev/chipset/acpi_power.h"
#include "virtdev/chipset/generation_id.h"
#include "virtdev/chipset/rtc.h"
#include "virtdev/chipset/uart16550.h"
#include "virtdev/disk/live/live_disk.h"
#include "virtdev/disk/qos/disk_qos.h"
#include "virtdev/synthetic/ic/heartbeat.h"
#include "virtdev/synthetic/ic/shutdown.h"
#include "virtdev/synthetic/ic/timesync.h"
#include "virtdev/synthetic/ic/vss.h"
#include "virtdev/synthetic/scsi/scsi_controller.h"
#include "virtdev/vmbus/vmbus_server.h"
#include "vmm/event/loop.h"
#include "vmm/machine/description.h"
#include "vmm/machine/machine.h"
#include "vmm/saved_state/ram_loader.h"
#include "vmm/saved_state/saved_state.h"
#include "worker/worker.pb.h"

namespace kvmbus::cmd {

/// Home: the main loop.
class Board final : public CaptureSource {
 public:
  struct Callbacks {
    vmm::Machine::Callbacks machine;
    std::function<void()> guest_changed;  ///< heartbeat or VMBus version
  };
  using Done = std::function<void(const vmm::Result<void>&)>;

  static vmm::Result<std::unique_ptr<Board>> Build(const config::Vm& config,
                                                   const std::string& run_dir,
                                                   bool unsupported_without_slat, vmm::Loop& loop,
                                                   Callbacks callbacks);
  ~Board() override;

  vmm::Machine& machine() override { return *machine_; }
  const vmm::Machine& machine() const { return *machine_; }
  const std::string& fdt() const override { return fdt_; }
  std::string Heartbeat() const;
  std::string VmbusVersion() const;

  /// The result says whether the guest accepted.
  void RequestShutdown(bool restart, bool force, Done done);
  /// See VssDevice: what is frozen is thawed after a while, whatever becomes of the caller.
  void FreezeGuest(uint64_t timeout_ns, Done done);
  void ThawGuest(Done done);
  vmm::Result<void> AttachDisk(const config::Disk& disk);
  void DetachDisk(uint32_t controller, uint32_t lun, Done done);
  /// What is said of a place without a disk.
  static vmm::Error NoDisk(uint32_t controller, uint32_t lun);
  /// board_qos.cc
  vmm::Result<void> SetDiskQos(uint32_t controller, uint32_t lun, const config::DiskQos& qos);
  using DiskVisitor = std::function<void(uint32_t controller, uint32_t lun,
                                         const virtdev::DiskStatistics& statistics)>;
  void VisitDiskStatistics(const DiskVisitor& visit) const;
  /// board_dvd.cc. `done` when the disc that was in, if any, is closed.
  void InsertDvd(uint32_t controller, uint32_t lun, const std::string& path, Done done);
  /// `done` also if the guest does not let the disc go.
  void EjectDvd(uint32_t controller, uint32_t lun, bool force, Done done);

  // board_disk_change.cc: changes of a disk in use, one at a time for a disk.

  void ResizeDisk(uint32_t controller, uint32_t lun, uint64_t size_bytes, Done done);
  /// The child is the disk's image when `done` says so.
  void CreateChild(uint32_t controller, uint32_t lun, const std::string& path, Done done);
  void MergeDisk(uint32_t controller, uint32_t lun, uint32_t layer, Done done);
  /// `done` of the change is told kCancelled, unless it ends by itself before.
  vmm::Result<void> CancelDiskChange(uint32_t controller, uint32_t lun);
  /// Which disk uses a file. kNotFound: none.
  vmm::Result<worker::DiskPlace> FindDisk(const std::string& path) const;
  /// Writes the children that are being made into the machine's disks.
  void NameChildren(config::Vm* vm) const;
  /// Of a disk that there is.
  const std::string& PathOf(uint32_t controller, uint32_t lun) const {
    return disks_.at({controller, lun}).path;
  }

  // board_state.cc: the machine in files.

  /// In place of the machine's PowerOn: Paused as it was saved in the files of its configuration.
  /// `failed` is called when memory that is still to come cannot be read; nothing helps then.
  vmm::Result<void> Restore(std::function<void(const vmm::Error&)> failed);
  void FinishLoading() override;
  /// A restored machine runs: the rest of its memory may come.
  void PrefetchMemory();
  /// Whether the disks can have the children that are asked for, and none is left out that is
  /// written. kFailedPrecondition, kUnimplemented.
  vmm::Result<void> CheckChildren(const worker::CaptureRequest& request);
  vmm::Result<MakeChild> ChildMaker(uint32_t controller, uint32_t lun,
                                    const std::string& path) override;
  vmm::Result<void> SwitchToChild(uint32_t controller, uint32_t lun) override;
  /// After a capture: those that nothing came of.
  void DropPreparedChildren();
  vmm::Result<void> FlushDisks() override;

  /// After the machine is off: flushes and closes the disks.
  vmm::Result<void> Close();

  void VisitCounters(const vmm::CounterVisitor& visit) const;

 private:
  struct Disk {
    std::shared_ptr<virtdev::DiskIo> io;  ///< null: an empty DVD drive
    std::string path;
    bool is_dvd = false;
    std::shared_ptr<ReservationsFile> reservations = nullptr;  ///< null: it is read alone
    std::vector<std::string> files = {};           ///< of the chain, when the change began
    std::unique_ptr<DiskChange> change = nullptr;  ///< under way; it goes before `io`
    std::string child = {};                        ///< that the change makes; "": it makes none
    /// Of a checkpoint that is being taken; null: it has none.
    std::shared_ptr<std::optional<virtdev::LiveChild>> next = nullptr;
  };

  Board(const config::Vm& config, vmm::Loop& loop, Callbacks callbacks);
  vmm::Result<void> BuildMachine(bool unsupported_without_slat);
  void StartReadingSavedState();
  vmm::Result<void> BuildChipset();
  vmm::Result<void> BuildVmbus();
  vmm::Result<void> BuildOffer(const vmm::VmbusOffer& offer);
  vmm::Result<void> BuildController(const vmm::VmbusOffer& offer);
  vmm::Result<void> AttachToController(const config::Disk& disk);
  static vmm::Result<void> LimitDisk(virtdev::DiskIo& io, const config::DiskQos& qos);
  vmm::Result<void> AttachShared(const config::Disk& disk);
  vmm::Result<void> AttachDvd(const config::Disk& drive);
  static vmm::Guid GenerationIdOf(const config::Vm& config);
  static vmm::Error NoBackupService();
  static vmm::Error IsChanging(const Disk& disk);
  static std::string FollowTop(Disk& disk);
  static virtdev::TopMoves Carry(const std::shared_ptr<ReservationsFile>& reservations);
  vmm::Result<Disk*> FindForChange(uint32_t controller, uint32_t lun);
  void StartChange(uint32_t controller, uint32_t lun, DiskChange::Work work, Done done);
  vmm::Result<void> CheckDvd(uint32_t controller, uint32_t lun) const;
  vmm::Result<void> BuildConsole();
  vmm::Result<vmm::BootState> LoadBoot();

  const config::Vm config_;
  std::string run_dir_;
  vmm::Loop& loop_;
  Callbacks callbacks_;
  vmm::MachineDescription description_;
  std::string fdt_;
  vmm::MemoryLayout layout_;

  std::vector<std::unique_ptr<vmm::LoopThread>> io_threads_;
  std::unique_ptr<vmm::GuestMemory> memory_;
  std::future<vmm::Result<vmm::SavedState>> saved_;  ///< of one that is to be restored
  std::unique_ptr<vmm::RamLoader> loader_;           ///< of a restored machine
  std::unique_ptr<ConsoleServer> console_;
  vmm::Fd console_file_;
  std::unique_ptr<virtdev::Uart16550> com1_;
  std::unique_ptr<virtdev::Rtc> rtc_;
  std::unique_ptr<virtdev::AcpiPower> power_;
  std::unique_ptr<virtdev::GenerationId> generation_id_;
  std::map<std::pair<uint32_t, uint32_t>, Disk> disks_;  // by controller and LUN
  std::vector<std::unique_ptr<virtdev::SyntheticScsiController>> controllers_;
  std::unique_ptr<virtdev::HeartbeatDevice> heartbeat_;
  std::unique_ptr<virtdev::ShutdownDevice> shutdown_;
  std::unique_ptr<virtdev::TimesyncDevice> timesync_;
  std::unique_ptr<virtdev::VssDevice> backup_;
  std::unique_ptr<vmm::Machine> machine_;
  std::unique_ptr<virtdev::VmbusServer> vmbus_;  // before machine_ is gone: it leaves the SynIC
};

}  // namespace kvmbus::cmd
