// SPDX-License-Identifier: Apache-2.0
// Inventory: disks, discs and their limits, of a machine that runs or does not.
#include <algorithm>

#include "vmm/config/disk_qos.h"
#include "vmm/config/limits.h"
#include "vmm/manager/inventory.h"
#include "vmm/manager/inventory_record.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"

namespace kvmbus::vmm {
namespace {

constexpr uint64_t kDiskTimeoutNs = 60'000'000'000;
constexpr uint64_t kChildIntervalNs = 500'000'000;

}  // namespace

Result<void> Inventory::BeginChange(const std::string& id) {
  Record* record = Find(id);
  if (record == nullptr) return MakeError(Code::kNotFound, "there is no virtual machine '{}'", id);
  TRY_VOID(CheckNotBusy(record->config.name(), record->busy));
  ++record->changes;
  return {};
}

void Inventory::EndChange(const std::string& id) {
  if (Record* record = Find(id)) --record->changes;
}

/// No job begins until `done` is called: its plan would lose what is stored by then.
Inventory::Done Inventory::InFlight(Record& record, Done done) {
  ++record.changes;
  return [this, alive = alive_, id = record.config.id(),
          done = std::move(done)](const Result<void>& result) {
    if (*alive) EndChange(id);
    done(result);
  };
}

/// kFailedPrecondition: a checkpoint of a machine, which is not `but`, would be lost by what is
/// written to the disk.
Result<void> Inventory::CheckNothingStandsOn(const config::Disk& disk,
                                             const std::string& but) const {
  if (!IsWritten(disk)) return {};
  const std::string path = RealPath(disk.path()).value_or(disk.path());
  for (const auto& [id, record] : records_) {
    if (id == but) continue;
    for (const auto& [checkpoint_id, checkpoint] : record->checkpoints) {
      if (WritesTo(checkpoint, path))
        return MakeError(Code::kFailedPrecondition,
                         "the checkpoint '{}' of '{}' stands on '{}', and would be lost: attach "
                         "another image, which may be a child of that one ('vmctl disk create "
                         "--parent'), or delete the checkpoint",
                         checkpoint.checkpoint().name(), record->config.name(), disk.path());
    }
  }
  return {};
}

/// Of other machines: its own are above theirs.
Result<void> Inventory::CheckNothingStandsOnDisks(const config::Vm& vm) const {
  for (const config::Disk& disk : vm.disks()) TRY_VOID(CheckNothingStandsOn(disk, vm.id()));
  return {};
}

void Inventory::AttachDisk(const std::string& id, const config::Disk& disk, Done done) {
  Record* record = Find(id);
  if (record == nullptr)
    return done(MakeError(Code::kNotFound, "there is no virtual machine '{}'", id));
  if (auto idle = CheckNotBusy(record->config.name(), record->busy); !idle.ok()) return done(idle);
  if (auto fit = CheckNotSaved(record->config); !fit.ok()) return done(fit);
  if (auto valid = ValidateDisk(record->config, disk); !valid.ok()) return done(valid);
  if (auto free = CheckNothingStandsOn(disk, ""); !free.ok()) return done(free);
  const auto store = [this, id, disk]() -> Result<void> {
    Record* target = Find(id);
    if (target == nullptr) return {};
    config::Vm changed = target->config;
    *changed.add_disks() = disk;
    TRY_VOID(store_->Save(changed));
    target->config = std::move(changed);
    return {};
  };
  if (!record->active()) return done(store());
  done = InFlight(*record, std::move(done));
  HoldSharedDisks(id, disk.shared() ? std::vector{disk.path()} : std::vector<std::string>(),
                  [this, id, disk, store, done = std::move(done)](const Result<void>& held) {
                    if (!held.ok()) return done(held);
                    worker::Request request;
                    *request.mutable_attach_disk()->mutable_disk() = disk;
                    Call(id, std::move(request), kDiskTimeoutNs,
                         [this, id, disk, store, done](const Result<worker::Reply>& reply) {
                           if (!reply.ok()) {
                             ReleaseSharedDisk(id, disk.path());
                             return done(reply.error());
                           }
                           if (const auto stored = store(); !stored.ok())
                             return UndoAttach(id, disk, stored.error(), done);
                           done({});
                         });
                  });
}

/// The guest keeps no disk that the configuration does not have.
void Inventory::UndoAttach(const std::string& id, const config::Disk& disk, const Error& why,
                           Done done) {
  worker::Request request;
  request.mutable_detach_disk()->set_controller(disk.controller());
  request.mutable_detach_disk()->set_lun(disk.lun());
  Call(id, std::move(request), kDiskTimeoutNs,
       [this, id, disk, why, done = std::move(done)](const Result<worker::Reply>& reply) {
         if (reply.ok()) ReleaseSharedDisk(id, disk.path());
         done(why);
       });
}

void Inventory::DetachDisk(const std::string& id, uint32_t controller, uint32_t lun, Done done) {
  Record* record = Find(id);
  if (record == nullptr)
    return done(MakeError(Code::kNotFound, "there is no virtual machine '{}'", id));
  if (auto idle = CheckNotBusy(record->config.name(), record->busy); !idle.ok()) return done(idle);
  if (auto fit = CheckNotSaved(record->config); !fit.ok()) return done(fit);
  const auto matches = [=](const config::Disk& disk) {
    return disk.controller() == controller && disk.lun() == lun;
  };
  if (std::none_of(record->config.disks().begin(), record->config.disks().end(), matches))
    return done(
        MakeError(Code::kNotFound,
                  "'{}' has no disk on controller {} at location {}; 'vmctl vm show' lists them",
                  record->config.name(), controller, lun));
  const auto store = [this, id, matches]() -> Result<void> {
    Record* target = Find(id);
    if (target == nullptr) return {};
    config::Vm changed = target->config;
    auto& disks = *changed.mutable_disks();
    const std::string path = std::find_if(disks.begin(), disks.end(), matches)->path();
    disks.erase(std::remove_if(disks.begin(), disks.end(), matches), disks.end());
    TRY_VOID(store_->Save(changed));
    target->config = std::move(changed);
    ReleaseSharedDisk(id, path);
    return {};
  };
  if (!record->active()) return done(store());
  done = InFlight(*record, std::move(done));
  worker::Request request;
  request.mutable_detach_disk()->set_controller(controller);
  request.mutable_detach_disk()->set_lun(lun);
  Call(id, std::move(request), kDiskTimeoutNs,
       [done = std::move(done), store](const Result<worker::Reply>& reply) {
         done(reply.ok() ? store() : Result<void>(reply.error()));
       });
}

Result<void> Inventory::ChangeDisk(const std::string& id, uint32_t controller, uint32_t lun,
                                   const std::function<void(config::Disk*)>& change) {
  Record* record = Find(id);
  if (record == nullptr) return MakeError(Code::kNotFound, "there is no virtual machine '{}'", id);
  config::Vm changed = record->config;
  for (config::Disk& disk : *changed.mutable_disks()) {
    if (disk.kind() != config::HARD_DISK || disk.controller() != controller || disk.lun() != lun)
      continue;
    change(&disk);
    TRY_VOID(store_->Save(changed));
    record->config = std::move(changed);
    return {};
  }
  return MakeError(Code::kNotFound, "'{}' has no disk on controller {} at location {}",
                   record->config.name(), controller, lun);
}

/// Whether a child that was being made when the worker went has become the disk.
Result<void> Inventory::SettleDisks(Record& record) {
  const config::Vm before = record.config;
  for (const config::Disk& disk : before.disks()) {
    if (disk.next().empty()) continue;
    const bool made = FileExists(disk.next());
    TRY_VOID(ChangeDisk(before.id(), disk.controller(), disk.lun(), [made](config::Disk* settled) {
      if (made) settled->set_path(settled->next());
      settled->clear_next();
    }));
  }
  return {};
}

/// A worker whose disks have changed while vmmd was away, or whose child of a disk came to nothing.
/// A child that is asked for by this link, or by a job, is settled by who asks.
void Inventory::TakeOverDisks(const Record& record, const worker::HelloReply& hello) {
  const config::Vm before = record.config;
  for (const config::Disk& known : before.disks()) {
    for (const config::Disk& now : hello.config().disks()) {
      const bool failed = hello.names_children() && now.next() != known.next() &&
                          record.busy.empty() && record.changes == 0;
      if (known.kind() != config::HARD_DISK || now.kind() != config::HARD_DISK ||
          now.controller() != known.controller() || now.lun() != known.lun() ||
          (now.path() == known.path() && !failed))
        continue;
      const auto stored =
          ChangeDisk(before.id(), known.controller(), known.lun(), [&now](config::Disk* disk) {
            disk->set_path(now.path());
            disk->set_next(now.next());
          });
      if (!stored.ok()) spdlog::error("storing '{}': {}", before.name(), stored.error().ToString());
    }
  }
}

/// What becomes of children that a worker is making and was not asked for by this link, it does not
/// say by itself.
void Inventory::AwaitChildren(const std::string& id, const config::Vm& worker) {
  const auto is_making = [](const config::Disk& disk) { return !disk.next().empty(); };
  if (std::none_of(worker.disks().begin(), worker.disks().end(), is_making)) return;
  FollowChildren(id);
}

void Inventory::FollowChildren(const std::string& id) {
  loop_.AddTimer(kChildIntervalNs, [this, alive = alive_, id] {
    Record* record = *alive ? Find(id) : nullptr;
    if (record != nullptr && record->active() && record->link) SayHello(*record);
  });
}

void Inventory::InsertDvd(const std::string& id, uint32_t controller, uint32_t lun,
                          const std::string& path, Done done) {
  if (path.empty()) return done(Error(Code::kInvalidArgument, "the image to insert has no name"));
  worker::Request request;
  request.mutable_insert_dvd()->set_controller(controller);
  request.mutable_insert_dvd()->set_lun(lun);
  request.mutable_insert_dvd()->set_path(path);
  config::Disk drive;
  drive.set_controller(controller);
  drive.set_lun(lun);
  drive.set_path(path);
  ChangeDisc(id, std::move(drive), std::move(request), std::move(done));
}

void Inventory::EjectDvd(const std::string& id, uint32_t controller, uint32_t lun, bool force,
                         Done done) {
  worker::Request request;
  request.mutable_eject_dvd()->set_controller(controller);
  request.mutable_eject_dvd()->set_lun(lun);
  request.mutable_eject_dvd()->set_force(force);
  config::Disk drive;
  drive.set_controller(controller);
  drive.set_lun(lun);
  ChangeDisc(id, std::move(drive), std::move(request), std::move(done));
}

/// `drive` as it is to be afterwards.
void Inventory::ChangeDisc(const std::string& id, config::Disk drive, worker::Request request,
                           Done done) {
  drive.set_kind(config::DVD);
  // The machine as it is to be, if it has the drive.
  const auto changed = [drive](config::Vm vm) -> Result<config::Vm> {
    for (config::Disk& disk : *vm.mutable_disks()) {
      if (disk.kind() != config::DVD || disk.controller() != drive.controller() ||
          disk.lun() != drive.lun())
        continue;
      disk.set_path(drive.path());
      TRY_VOID(ValidateDisk(vm, disk));
      return vm;
    }
    return MakeError(Code::kNotFound,
                     "'{}' has no DVD drive on controller {} at location {}; 'vmctl vm show' lists "
                     "them",
                     vm.name(), drive.controller(), drive.lun());
  };
  ChangeConfig(id, changed, std::move(request), std::move(done));
}

void Inventory::SetDiskQos(const std::string& id, uint32_t controller, uint32_t lun,
                           const config::DiskQosChange& change, Done done) {
  const auto changed = [=](config::Vm vm) -> Result<config::Vm> {
    for (config::Disk& disk : *vm.mutable_disks()) {
      if (disk.controller() != controller || disk.lun() != lun) continue;
      ChangeDiskQos(change, disk.mutable_qos());
      TRY_VOID(ValidateDisk(vm, disk));
      return vm;
    }
    return MakeError(Code::kNotFound,
                     "'{}' has no disk on controller {} at location {}; 'vmctl disk list' lists "
                     "them",
                     vm.name(), controller, lun);
  };
  worker::Request request;
  request.mutable_set_disk_qos()->set_controller(controller);
  request.mutable_set_disk_qos()->set_lun(lun);
  *request.mutable_set_disk_qos()->mutable_change() = change;
  ChangeConfig(id, changed, std::move(request), std::move(done));
}

/// Checks the change, has the running machine make it, and then stores it.
void Inventory::ChangeConfig(const std::string& id, const Change& changed, worker::Request request,
                             Done done) {
  Record* record = Find(id);
  if (record == nullptr)
    return done(MakeError(Code::kNotFound, "there is no virtual machine '{}'", id));
  if (auto idle = CheckNotBusy(record->config.name(), record->busy); !idle.ok()) return done(idle);
  if (auto fit = CheckNotSaved(record->config); !fit.ok()) return done(fit);
  if (auto valid = changed(record->config); !valid.ok()) return done(std::move(valid.error()));
  const auto store = [this, id, changed]() -> Result<void> {
    Record* target = Find(id);
    if (target == nullptr) return {};
    config::Vm vm = TRY(changed(target->config));
    TRY_VOID(store_->Save(vm));
    target->config = std::move(vm);
    return {};
  };
  if (!record->active()) return done(store());
  done = InFlight(*record, std::move(done));
  Call(id, std::move(request), kDiskTimeoutNs,
       [done = std::move(done), store](const Result<worker::Reply>& reply) {
         done(reply.ok() ? store() : Result<void>(reply.error()));
       });
}

}  // namespace kvmbus::vmm
