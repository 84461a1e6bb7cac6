// SPDX-License-Identifier: Apache-2.0
/// \file
/// Inventory: the VMs of this host: their configurations, their workers, what may be done to them.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "config/job.pb.h"
#include "config/vm.pb.h"
#include "vmm/checkpoint/checkpoint_tree.h"
#include "vmm/config/config_store.h"
#include "vmm/event/loop.h"
#include "vmm/hypervisor/host_requirement.h"
#include "vmm/manager/disk_owners.h"
#include "vmm/manager/worker_link.h"
#include "vmm/manager/worker_process.h"
#include "worker/worker.pb.h"

namespace kvmbus::vmm {

struct VmView {
  config::Vm config;
  worker::Status status;
};

/// Who works on the image files of VMs that do not run, and stands aside when one starts.
class ImageWorker {
 public:
  virtual ~ImageWorker() = default;
  /// `idle` is called when nothing of the VM is worked on; that stays so until Resume.
  virtual void Suspend(const std::string& vm, std::function<void()> idle) = 0;
  virtual void Resume(const std::string& vm) = 0;
};

/// Home: the manager's loop; every function and every callback.
class Inventory {
 public:
  struct Options {
    std::string state_dir;
    std::string run_dir;
    std::string worker_path;
    std::function<std::vector<HostRequirement>()> check_host;
    uint64_t start_timeout_ns = 120'000'000'000;
  };
  using Done = std::function<void(const Result<void>&)>;
  using ReplyDone = std::function<void(const Result<worker::Reply>&)>;

  /// Reads the store and finds the workers that run.
  static Result<std::unique_ptr<Inventory>> Open(Loop& loop, Options options);
  ~Inventory();

  /// Fills in defaults, checks, stores. kAlreadyExists for a name or id that is taken.
  Result<std::string> Create(config::Vm vm);
  Result<void> Delete(const std::string& id);
  /// kAlreadyExists: another one has its id or its name.
  Result<void> CheckIsNew(const config::Vm& vm) const;
  /// A machine of somebody else's, whose files are where its folder says, with its checkpoints.
  Result<void> Register(const config::Vm& vm, const std::vector<config::Vm>& checkpoints);
  /// To configuration version 6.2, with its checkpoints, while it is off. Saved memory goes, which
  /// must be agreed to.
  Result<void> Upgrade(const std::string& id, bool discard_saved_states);

  std::vector<VmView> List() const;
  /// By id or name: the id. kNotFound; kFailedPrecondition for a name that several have.
  Result<std::string> Resolve(const std::string& id_or_name) const;
  Result<VmView> Get(const std::string& id) const;

  void SetImageWorker(ImageWorker* worker) { image_worker_ = worker; }

  /// `done` when it runs, or with the reason why it does not.
  void Start(const std::string& id, Done done);
  /// `done` when the guest has accepted; it is Off later.
  void Shutdown(const std::string& id, bool restart, bool force, Done done);
  /// `done` when the worker is gone.
  void TurnOff(const std::string& id, Done done);
  /// Into the files of its configuration; `done` when it is Saved. Merges of its disks stand aside.
  void Save(const std::string& id, bool compress, Done done);
  /// A Saved one is Off afterwards, as if it had been turned off in place of saved.
  Result<void> DiscardSaved(const std::string& id);
  /// A request that the worker answers: pause, resume, pulse, counters, describe.
  void Call(const std::string& id, worker::Request request, uint64_t timeout_ns, ReplyDone done);
  /// Changes the configuration, and the running machine too.
  void AttachDisk(const std::string& id, const config::Disk& disk, Done done);
  void DetachDisk(const std::string& id, uint32_t controller, uint32_t lun, Done done);
  /// Changes a disk's Storage QoS, running or not.
  void SetDiskQos(const std::string& id, uint32_t controller, uint32_t lun,
                  const config::DiskQosChange& change, Done done);

  /// Stores what `change` makes of a hard disk's entry. kNotFound: there is none.
  Result<void> ChangeDisk(const std::string& id, uint32_t controller, uint32_t lun,
                          const std::function<void(config::Disk*)>& change);
  /// What becomes of a child that the worker may be making, and nobody waits for any more.
  void FollowChildren(const std::string& id);

  /// Puts a disc into a DVD drive, or takes it out; a running guest that holds it is asked first
  /// unless it is forced.
  void InsertDvd(const std::string& id, uint32_t controller, uint32_t lun, const std::string& path,
                 Done done);
  void EjectDvd(const std::string& id, uint32_t controller, uint32_t lun, bool force, Done done);

  // inventory_shared.cc: a disk that running VMs share.

  bool ServesShared(const std::string& image) const;
  /// DiskOwners::Grow.
  void GrowShared(const std::string& image, uint64_t size_bytes, Done done);

  // inventory_checkpoints.cc: files of a VM and of its checkpoints.

  CheckpointMap Checkpoints(const std::string& id) const;
  /// Until Release nothing else changes its files: it is not started, saved, deleted or given other
  /// disks. `what` is said to those who try. kFailedPrecondition: somebody else has it.
  Result<void> Reserve(const std::string& id, const std::string& what);
  void Release(const std::string& id);
  /// Until EndChange no Reserve succeeds: a disk of it is being changed, by no job. Errors: those
  /// of Reserve.
  Result<void> BeginChange(const std::string& id);
  void EndChange(const std::string& id);
  /// While a job exports it neither it nor a checkpoint of it is deleted. EndExport is idempotent.
  void BeginExport(const std::string& id, const std::string& job);
  void EndExport(const std::string& id, const std::string& job);
  Result<void> CheckNotExported(const std::string& id) const;
  /// Of a VM that there is, or of a checkpoint of it.
  Result<void> Store(const config::Vm& vm);
  /// All of it, or an error and it has to be made again.
  Result<void> Make(const config::FileChange& change);

  /// Calls `changed` with the VM's id after every change of its status, until the handle is
  /// dropped.
  using Subscription = std::shared_ptr<void>;
  Subscription Subscribe(std::function<void(const std::string& id)> changed);

  const std::vector<HostRequirement> CheckHost() const { return options_.check_host(); }
  const std::string& state_dir() const { return options_.state_dir; }

 private:
  struct Record;
  using Change = std::function<Result<config::Vm>(config::Vm)>;

  Inventory(Loop& loop, Options options, std::unique_ptr<ConfigStore> store);
  void Load(const ConfigStore::Listing& listing);
  void AddRecord(config::Vm vm);
  Record* Find(const std::string& id) const;
  void Notify(const std::string& id);
  // inventory_workers.cc: from a worker's start to its end.
  Result<void> HostIsFit() const;
  void HoldAndLaunch(const std::string& id, Done done);
  void Launch(const std::string& id, Done done);
  Result<void> Spawn(Record& record);
  void Watch(Record& record, WorkerProcess process);
  void Adopt(Record& record);
  void FindEnded(Record& record);
  void TryConnect(Record& record);
  Result<void> Connect(Record& record);
  void Reconnect(const std::string& id);
  void SendTurnOff(const Record& record);
  void DropLink(const std::string& id);
  void SayHello(Record& record);
  void OnHello(Record& record, const worker::HelloReply& hello);
  void OnStranger(Record& record, const worker::HelloReply& hello);
  void OnStatus(Record& record, const worker::Status& status);
  void FinishStart(Record& record, const Result<void>& result);
  void OnWorkerEnded(Record& record);
  // inventory_disks.cc
  Result<void> CheckNothingStandsOn(const config::Disk& disk, const std::string& but) const;
  Result<void> CheckNothingStandsOnDisks(const config::Vm& vm) const;
  Done InFlight(Record& record, Done done);
  Result<void> SettleDisks(Record& record);
  void TakeOverDisks(const Record& record, const worker::HelloReply& hello);
  void AwaitChildren(const std::string& id, const config::Vm& worker);
  void UndoAttach(const std::string& id, const config::Disk& disk, const Error& why, Done done);
  void ChangeDisc(const std::string& id, config::Disk drive, worker::Request request, Done done);
  void ChangeConfig(const std::string& id, const Change& changed, worker::Request request,
                    Done done);
  // inventory_save.cc
  void Capture(const std::string& id, bool compress, Done done);
  void CommitSaved(Record& record);
  void TidySavedState(const config::Vm& vm, bool ours_alone);
  void ResumeRestored(Record& record);
  void TidyRestoredSoon(const std::string& id);
  // inventory_shared.cc: disks that several virtual machines have.
  void HoldSharedDisks(const std::string& id, std::vector<std::string> images, Done done);
  void HoldForGood(const std::string& id);
  void ReleaseSharedDisk(const std::string& id, const std::string& image);
  // inventory_checkpoints.cc
  void LoadCheckpoints(const std::vector<config::Vm>& checkpoints);
  std::string RunDirOf(const std::string& id) const { return options_.run_dir + "/" + id; }

  Loop& loop_;
  const Options options_;
  std::unique_ptr<ConfigStore> store_;
  std::unique_ptr<DiskOwners> owners_;
  ImageWorker* image_worker_ = nullptr;
  std::map<std::string, std::unique_ptr<Record>> records_;  // by id
  std::map<uint64_t, std::function<void(const std::string&)>> subscribers_;
  uint64_t next_subscriber_ = 1;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvmbus::vmm
