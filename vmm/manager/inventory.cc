// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/inventory.h"

#include <unistd.h>

#include "vmm/config/limits.h"
#include "vmm/config/vm_files.h"
#include "vmm/manager/inventory_record.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"
#include "vmm/text/letter_case.h"

namespace kvmbus::vmm {

Inventory::Inventory(Loop& loop, Options options, std::unique_ptr<ConfigStore> store)
    : loop_(loop),
      options_(std::move(options)),
      store_(std::move(store)),
      owners_(std::make_unique<DiskOwners>(
          loop_, DiskOwners::Options{options_.run_dir, options_.worker_path})) {}

Inventory::~Inventory() {
  *alive_ = false;
  for (auto& [id, record] : records_) {
    loop_.CancelTimer(record->start_timer);
    loop_.CancelTimer(record->connect_timer);
    if (record->process.pidfd.valid()) loop_.Unwatch(record->process.pidfd.get());
  }
}

Result<std::unique_ptr<Inventory>> Inventory::Open(Loop& loop, Options options) {
  options.state_dir = NormalFolder(options.state_dir);
  TRY_VOID(MakeFolders(options.state_dir, 0750));
  TRY_VOID(MakeFolders(options.run_dir, 0750));
  auto store = TRY(OpenFileConfigStore(options.state_dir));
  const ConfigStore::Listing listing = TRY(store->List());
  std::unique_ptr<Inventory> self(new Inventory(loop, std::move(options), std::move(store)));
  self->Load(listing);
  return self;
}

void Inventory::Load(const ConfigStore::Listing& listing) {
  for (const Error& error : listing.damaged) spdlog::error("{}", error.ToString());
  for (const config::Vm& vm : listing.vms) {
    auto record = std::make_unique<Record>();
    record->config = vm;
    record->status.set_state(RestStateOf(vm));
    record->status.set_vm_id(vm.id());
    Adopt(*(records_[vm.id()] = std::move(record)));
  }
  LoadCheckpoints(listing.checkpoints);
}

Inventory::Record* Inventory::Find(const std::string& id) const {
  const auto at = records_.find(id);
  return at == records_.end() ? nullptr : at->second.get();
}

Result<std::string> Inventory::Resolve(const std::string& id_or_name) const {
  const std::string upper = UpperCase(id_or_name);
  if (records_.count(upper) != 0) return upper;
  std::string found;
  for (const auto& [id, record] : records_) {
    if (record->config.name() != id_or_name) continue;
    if (!found.empty())
      return MakeError(Code::kFailedPrecondition,
                       "several virtual machines are named '{}': use the id", id_or_name);
    found = id;
  }
  if (found.empty())
    return MakeError(Code::kNotFound,
                     "there is no virtual machine '{}'; 'vmctl vm list' shows those that are",
                     id_or_name);
  return found;
}

Result<std::string> Inventory::Create(config::Vm vm) {
  ApplyDefaults(&vm);
  if (vm.folder().empty()) vm.set_folder(options_.state_dir);
  TRY_VOID(ValidateConfig(vm));
  if (vm.saved() || vm.has_checkpoint() || !vm.parent_checkpoint().empty())
    return MakeError(Code::kInvalidArgument,
                     "'{}': a new virtual machine has neither a saved state nor checkpoints",
                     vm.name());
  TRY_VOID(CheckIsNew(vm));
  TRY_VOID_CTX(store_->Save(vm), "storing '{}'", vm.name());
  const std::string id = vm.id();
  AddRecord(std::move(vm));
  return id;
}

Result<void> Inventory::CheckIsNew(const config::Vm& vm) const {
  for (const auto& [id, record] : records_) {
    if (id == vm.id() || record->config.name() == vm.name())
      return MakeError(
          Code::kAlreadyExists,
          "a virtual machine named '{}' exists already (id {}); choose another name or delete it",
          record->config.name(), id);
  }
  return {};
}

void Inventory::AddRecord(config::Vm vm) {
  const std::string id = vm.id();
  auto record = std::make_unique<Record>();
  record->status.set_state(RestStateOf(vm));
  record->status.set_vm_id(id);
  record->config = std::move(vm);
  records_[id] = std::move(record);
  Notify(id);
}

Result<void> Inventory::Register(const config::Vm& vm, const std::vector<config::Vm>& checkpoints) {
  TRY_VOID(CheckIsNew(vm));
  // Without its entry in the list nobody's files have changed but for paths.
  for (const config::Vm& checkpoint : checkpoints)
    TRY_VOID_CTX(store_->Save(checkpoint), "storing a checkpoint of '{}'", vm.name());
  TRY_VOID_CTX(store_->Adopt(vm), "storing '{}'", vm.name());
  AddRecord(vm);
  LoadCheckpoints(checkpoints);
  return {};
}

Result<void> Inventory::Delete(const std::string& id) {
  const Record* record = Find(id);
  if (record == nullptr) return MakeError(Code::kNotFound, "there is no virtual machine '{}'", id);
  if (record->active())
    return MakeError(Code::kFailedPrecondition,
                     "'{}' is running; stop it first ('vmctl vm stop', or 'vmctl vm turn-off')",
                     record->config.name());
  TRY_VOID(CheckNotBusy(record->config.name(), record->busy));
  TRY_VOID(CheckNotExported(id));
  TRY_VOID(store_->Delete(record->config));
  for (const char* file : {"lock", "exit", "worker.log", "worker.log.1"})
    ::unlink((RunDirOf(id) + "/" + file).c_str());
  ::rmdir(RunDirOf(id).c_str());
  records_.erase(id);
  Notify(id);
  return {};
}

Result<void> Inventory::Upgrade(const std::string& id, bool discard_saved_states) {
  Record* record = Find(id);
  if (record == nullptr) return MakeError(Code::kNotFound, "there is no virtual machine '{}'", id);
  if (record->active() || record->preparing)
    return MakeError(Code::kFailedPrecondition,
                     "'{}' is running; stop it first ('vmctl vm stop', or 'vmctl vm turn-off')",
                     record->config.name());
  TRY_VOID(CheckNotBusy(record->config.name(), record->busy));
  TRY_VOID(CheckNotExported(id));
  record->config = TRY_CTX(store_->Upgrade(record->config, discard_saved_states), "upgrading '{}'",
                           record->config.name());
  for (auto& [checkpoint_id, checkpoint] : record->checkpoints) {
    checkpoint.set_version(record->config.version());
    checkpoint.set_saved(false);
  }
  record->status.set_state(worker::OFF);  // saved memory has not come along
  Notify(id);
  return {};
}

std::vector<VmView> Inventory::List() const {
  std::vector<VmView> views;
  for (const auto& [id, record] : records_) views.push_back({record->config, record->status});
  return views;
}

Result<VmView> Inventory::Get(const std::string& id) const {
  const Record* record = Find(id);
  if (record == nullptr) return MakeError(Code::kNotFound, "there is no virtual machine '{}'", id);
  return VmView{record->config, record->status};
}

Inventory::Subscription Inventory::Subscribe(std::function<void(const std::string&)> changed) {
  const uint64_t id = next_subscriber_++;
  subscribers_[id] = std::move(changed);
  return Subscription(new int, [this, id, alive = alive_](void* unused) {
    delete static_cast<int*>(unused);
    if (*alive) subscribers_.erase(id);
  });
}

void Inventory::Notify(const std::string& id) {
  std::vector<uint64_t> keys;
  for (const auto& [key, subscriber] : subscribers_) keys.push_back(key);
  for (const uint64_t key : keys) {
    const auto at = subscribers_.find(key);
    if (at == subscribers_.end()) continue;
    const auto subscriber = at->second;  // it may unsubscribe itself
    subscriber(id);
  }
}

}  // namespace kvmbus::vmm
