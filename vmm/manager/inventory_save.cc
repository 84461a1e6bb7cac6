// SPDX-License-Identifier: Apache-2.0
// Saving a running VM to its files, and going on from them.
//
// The configuration says whether a saved state counts (`saved`), and is changed at two moments
// alone: to true when the files are whole and the guest is stopped for good; to false when a worker
// has read them and the guest has not run yet. A crash before the second leaves it Saved, after it
// Off, as any crash of a running VM does.
#include "vmm/config/vm_files.h"
#include "vmm/config/vm_tree.h"
#include "vmm/manager/inventory_record.h"
#include "vmm/os/log.h"

namespace kvmbus::vmm {
namespace {

/// Until somebody has made room for the configuration of a saved machine.
constexpr uint64_t kCommitRetryNs = 2'000'000'000;
/// Memory is written at the speed of a disk.
constexpr uint64_t kSaveTimeoutNs = 24ull * 3600 * 1'000'000'000;
constexpr uint64_t kResumeTimeoutNs = 60'000'000'000;
/// A file of a guest's memory is rewritten without it; whoever asked for the start has his answer
/// by then.
constexpr uint64_t kTidyDelayNs = 50'000'000;

}  // namespace

void NameSavedState(const config::Vm& vm, worker::CaptureRequest* request) {
  const std::vector<std::string> files = SavedStateFilesOf(vm);
  request->set_state_path(files.front());
  if (files.size() != 1) request->set_memory_path(files.back());
  request->set_vm_version(VersionNumber(vm.version()));
}

worker::State RestStateOf(const config::Vm& vm) { return vm.saved() ? worker::SAVED : worker::OFF; }

Result<void> CheckNotSaved(const config::Vm& vm) {
  if (!vm.saved()) return {};
  return MakeError(Code::kFailedPrecondition,
                   "'{}' is saved: start it first, or give its saved state up with 'vmctl vm "
                   "discard'",
                   vm.name());
}

void Inventory::Save(const std::string& id, bool compress, Done done) {
  if (auto reserved = Reserve(id, "it is being saved"); !reserved.ok()) return done(reserved);
  const Done ended = [this, alive = alive_, id,
                      done = std::move(done)](const Result<void>& result) {
    if (!*alive) return;
    Release(id);
    done(result);
    if (*alive && image_worker_ != nullptr) image_worker_->Resume(id);
  };
  if (image_worker_ == nullptr) return Capture(id, compress, ended);
  // A disk that is being merged cannot be part of a saved state; when the worker is gone, the merge
  // goes on here.
  image_worker_->Suspend(id, [this, alive = alive_, id, compress, ended] {
    if (*alive) Capture(id, compress, ended);
  });
}

void Inventory::Capture(const std::string& id, bool compress, Done done) {
  const Record* record = Find(id);
  if (record == nullptr)
    return done(MakeError(Code::kNotFound, "there is no virtual machine '{}'", id));
  worker::Request request;
  NameSavedState(record->config, request.mutable_capture());
  request.mutable_capture()->set_stop(true);
  request.mutable_capture()->set_compress(compress);
  Call(id, std::move(request), kSaveTimeoutNs,
       [this, alive = alive_, id, done = std::move(done)](const Result<worker::Reply>& reply) {
         if (!*alive) return;
         if (!reply.ok()) {
           Error error = reply.error();
           return done(std::move(error).WithContext("saving"));
         }
         Record* saved = Find(id);
         if (saved == nullptr || !saved->active()) return done({});
         saved->off_waiters.push_back(done);
         CommitSaved(*saved);
       });
}

void Inventory::TidySavedState(const config::Vm& vm, bool ours_alone) {
  const auto tidied = store_->TidySavedState(vm, ours_alone);
  if (!tidied.ok()) spdlog::error("'{}': {}", vm.name(), tidied.error().ToString());
}

/// Its files are whole; the worker has nothing left to do.
void Inventory::CommitSaved(Record& record) {
  config::Vm saved = record.config;
  saved.set_saved(true);
  auto stored = store_->Save(saved);
  if (!stored.ok()) {
    // Nothing is lost as long as the worker waits.
    spdlog::error("'{}' is saved, and its configuration is not: {}", saved.name(),
                  stored.error().ToString());
    for (const Done& waiter : std::exchange(record.off_waiters, {})) waiter(stored);
    loop_.AddTimer(kCommitRetryNs, [this, alive = alive_, id = saved.id()] {
      Record* waiting = *alive ? Find(id) : nullptr;
      if (waiting != nullptr && waiting->active() && waiting->status.state() == worker::SAVED &&
          !waiting->config.saved())
        CommitSaved(*waiting);
    });
    return;
  }
  record.config = std::move(saved);
  TurnOff(record.config.id(), [](const Result<void>&) {});
}

/// A worker that has read a saved state waits for this.
void Inventory::ResumeRestored(Record& record) {
  config::Vm running = record.config;
  running.set_saved(false);
  if (record.config.saved()) {
    const auto stored = store_->Save(running);
    if (!stored.ok()) {
      FinishStart(record, stored);
      return TurnOff(running.id(), [](const Result<void>&) {});
    }
    record.config = std::move(running);
  }
  worker::Request request;
  request.mutable_resume();
  Call(record.config.id(), std::move(request), kResumeTimeoutNs,
       [this, alive = alive_, id = record.config.id()](const Result<worker::Reply>& reply) {
         Record* restored = *alive ? Find(id) : nullptr;
         if (restored == nullptr) return;
         // It hung up, and is told again; or it has ended.
         if (!reply.ok() && reply.error().code() == Code::kUnavailable) return;
         if (!reply.ok()) return FinishStart(*restored, reply.error());  // its end tidies
         TidyRestoredSoon(id);
       });
}

/// The worker has the files open, and nobody else needs them. Not while others are made; if it
/// ends before, its end tidies.
void Inventory::TidyRestoredSoon(const std::string& id) {
  loop_.AddTimer(kTidyDelayNs, [this, alive = alive_, id] {
    const Record* restored = *alive ? Find(id) : nullptr;
    if (restored == nullptr || !restored->active() || restored->config.saved()) return;
    if (!restored->busy.empty()) return TidyRestoredSoon(id);
    TidySavedState(restored->config, false);
  });
}

Result<void> Inventory::DiscardSaved(const std::string& id) {
  Record* record = Find(id);
  if (record == nullptr) return MakeError(Code::kNotFound, "there is no virtual machine '{}'", id);
  if (record->active() || !record->config.saved())
    return MakeError(Code::kFailedPrecondition, "'{}' is not saved", record->config.name());
  TRY_VOID(CheckNotBusy(record->config.name(), record->busy));
  config::Vm off = record->config;
  off.set_saved(false);
  TRY_VOID(store_->Save(off));
  record->config = std::move(off);
  TidySavedState(record->config, false);
  record->status.set_state(worker::OFF);
  record->status.set_reason("its saved state was given up");
  Notify(id);
  return {};
}

}  // namespace kvmbus::vmm
