// SPDX-License-Identifier: Apache-2.0
#include "vmm/manager/jobs.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "vmm/guid/guid.h"
#include "vmm/os/file.h"
#include "vmm/os/log.h"

namespace kvmbus::vmm {
namespace {

constexpr std::string_view kSuffix = ".job";
constexpr uint64_t kFileLimit = 16u << 20;

bool Older(const config::Job& a, const config::Job& b) {
  return a.started_filetime() < b.started_filetime();
}

/// What is committed has to be made: without a file that it links it never could be.
Result<void> CheckSources(const config::FileChange& change) {
  for (const config::FileLink& link : change.links()) {
    if (!link.from().empty() && !FileExists(link.from()))
      return MakeError(Code::kNotFound, "'{}', which belongs to a saved state, is not there",
                       link.from());
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Jobs>> Jobs::Open(const std::string& folder, const Clock& clock) {
  TRY_VOID(MakeFolders(folder, 0750));
  RemoveUnfinished(folder);
  std::unique_ptr<Jobs> self(new Jobs(folder, clock));
  self->Load();
  return self;
}

void Jobs::Load() {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, error)) {
    if (entry.path().extension() != kSuffix) continue;
    const auto bytes = ReadWholeFile(entry.path().string(), kFileLimit);
    config::Job job;
    if (bytes.ok() && job.ParseFromString(*bytes) && job.id() == entry.path().stem().string())
      jobs_[job.id()] = std::move(job);
    else
      spdlog::error("job '{}' cannot be read", entry.path().string());
  }
}

std::vector<config::Job> Jobs::List() const {
  std::vector<config::Job> list;
  for (const auto& [id, job] : jobs_) list.push_back(job);
  std::stable_sort(list.begin(), list.end(), Older);
  return list;
}

Result<config::Job> Jobs::Get(const std::string& id) const {
  const auto at = jobs_.find(id);
  if (at == jobs_.end())
    return MakeError(Code::kNotFound, "there is no job '{}'; 'vmctl job list' shows those that are",
                     id);
  return at->second;
}

const config::Job* Jobs::FindRequest(const std::string& request_id) const {
  if (request_id.empty()) return nullptr;
  const auto at = std::find_if(jobs_.begin(), jobs_.end(), [&](const auto& entry) {
    return entry.second.request_id() == request_id;
  });
  return at == jobs_.end() ? nullptr : &at->second;
}

std::vector<config::Job> Jobs::Unfinished() const {
  std::vector<config::Job> list = List();
  std::erase_if(list, [](const config::Job& job) { return job.state() != config::JOB_RUNNING; });
  return list;
}

Result<config::Job> Jobs::Begin(config::Job job) {
  RetryEnds();
  job.set_id(Guid::Random().ToString());
  job.set_state(config::JOB_RUNNING);
  job.set_started_filetime(FiletimeOfRealtime(clock_.RealtimeNs()));
  const auto stored = Store(job);
  if (!stored.ok()) {
    (void)RemoveFile(PathOf(job.id()));  // it may be there, and not durable
    return stored.error();
  }
  Forget();
  return job;
}

Result<void> Jobs::Store(const config::Job& job) {
  config::Job next = job;
  if (const auto known = jobs_.find(job.id()); known != jobs_.end()) {
    next.set_pause_ns(known->second.pause_ns());
    next.set_bytes_written(known->second.bytes_written());
    if (job.committed() && !known->second.committed()) TRY_VOID(CheckSources(job.change()));
  }
  TRY_VOID(ReplaceFile(PathOf(job.id()), next.SerializeAsString(), 0640));
  // Not before: one that could not be begun is nobody's to end.
  jobs_[job.id()] = std::move(next);
  return {};
}

void Jobs::SetCost(const std::string& id, uint64_t pause_ns, uint64_t bytes_written) {
  const auto at = jobs_.find(id);
  if (at == jobs_.end()) return;
  at->second.set_pause_ns(pause_ns);
  at->second.set_bytes_written(bytes_written);
}

void Jobs::SetProgress(const std::string& id, uint64_t done, uint64_t total) {
  const auto at = jobs_.find(id);
  if (at == jobs_.end()) return;
  at->second.set_done(done);
  at->second.set_total(total);
}

bool Jobs::End(const std::string& id, const Result<void>& result) {
  cancels_.erase(id);
  const auto at = jobs_.find(id);
  if (at == jobs_.end()) return true;
  config::Job& job = at->second;
  job.set_ended_filetime(FiletimeOfRealtime(clock_.RealtimeNs()));
  job.clear_change();  // what it knew of files is of no use any more
  job.clear_new_files();
  if (result.ok()) {
    job.set_state(config::JOB_DONE);
  } else {
    const Code code = result.error().code();
    job.set_state(code == Code::kCancelled ? config::JOB_CANCELLED : config::JOB_FAILED);
    job.set_error_code(static_cast<uint32_t>(code));
    job.set_error(result.error().ToString());
    spdlog::error("job {} ({}): {}", id, config::JobKind_Name(job.kind()), job.error());
  }
  unsettled_.insert(id);
  const auto settled = SettleEnd(job);
  if (!settled.ok())
    spdlog::critical(
        "job {} has ended, which cannot be stored: {}; a vmmd that starts would do it "
        "again, so make room, or see to its folder",
        id, settled.error().ToString());
  return settled.ok();
}

/// A job that has ended and runs on the disk is made again by a vmmd that starts, however long ago
/// it was. Rather than that it is forgotten, which takes no room.
Result<void> Jobs::SettleEnd(const config::Job& job) {
  const auto stored = Store(config::Job(job));
  if (!stored.ok()) {
    TRY_VOID(RemoveFile(PathOf(job.id())));
    spdlog::error("job {} is in the list until vmmd ends: {}", job.id(), stored.error().ToString());
  }
  unsettled_.erase(job.id());
  return {};
}

void Jobs::RetryEnds() {
  const std::set<std::string> ids = unsettled_;
  for (const std::string& id : ids) (void)SettleEnd(jobs_.at(id));
}

/// The oldest of those that have ended.
void Jobs::Forget() {
  for (const config::Job& job : List()) {
    if (jobs_.size() <= kKept) return;
    if (job.state() == config::JOB_RUNNING || unsettled_.contains(job.id())) continue;
    ::unlink(PathOf(job.id()).c_str());
    jobs_.erase(job.id());
  }
}

void Jobs::SetCancel(const std::string& id, std::function<void()> cancel) {
  if (cancel)
    cancels_[id] = std::move(cancel);
  else
    cancels_.erase(id);
}

Result<void> Jobs::Cancel(const std::string& id) {
  const config::Job job = TRY(Get(id));
  if (job.state() != config::JOB_RUNNING)
    return MakeError(Code::kFailedPrecondition, "job '{}' has ended", id);
  const auto at = cancels_.find(id);
  if (at == cancels_.end())
    return MakeError(Code::kFailedPrecondition,
                     "job '{}' is past the point where it can be "
                     "cancelled: it ends by itself soon",
                     id);
  const auto cancel = at->second;
  cancel();
  return {};
}

}  // namespace kvmbus::vmm
