// SPDX-License-Identifier: Apache-2.0
/// \file
/// Jobs: what vmmd does that takes longer than a call, in files.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "config/job.pb.h"
#include "vmm/os/clock.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

/// Home: the manager's loop.
class Jobs {
 public:
  /// Jobs that have ended are kept, so many of them.
  static constexpr size_t kKept = 200;

  /// Reads the folder; a file that is damaged is reported and left alone.
  static Result<std::unique_ptr<Jobs>> Open(const std::string& folder, const Clock& clock);

  std::vector<config::Job> List() const;  ///< oldest first
  Result<config::Job> Get(const std::string& id) const;
  /// The job that was begun with this request id, if any.
  const config::Job* FindRequest(const std::string& request_id) const;
  /// Those of an earlier vmmd that have not ended.
  std::vector<config::Job> Unfinished() const;

  /// Gives it an id and keeps it.
  Result<config::Job> Begin(config::Job job);
  /// Keeps what has changed of it. kNotFound: it is to be committed, and a file that it links is
  /// missing.
  Result<void> Store(const config::Job& job);
  void SetProgress(const std::string& id, uint64_t done, uint64_t total);
  /// What making a checkpoint cost.
  void SetCost(const std::string& id, uint64_t pause_ns, uint64_t bytes_written);
  /// False: on the disk it still runs, so that a vmmd that starts makes it again; its machine must
  /// stay reserved, so that this does no harm. It is tried again whenever a job begins.
  bool End(const std::string& id, const Result<void>& result);

  /// What Cancel calls while the job runs and can be cancelled; null: it cannot, from now on.
  void SetCancel(const std::string& id, std::function<void()> cancel);
  /// kFailedPrecondition: it has ended, or is past the point where it can be.
  Result<void> Cancel(const std::string& id);

 private:
  Jobs(std::string folder, const Clock& clock) : folder_(std::move(folder)), clock_(clock) {}
  void Load();
  void Forget();
  Result<void> SettleEnd(const config::Job& job);
  void RetryEnds();
  std::string PathOf(const std::string& id) const { return folder_ + "/" + id + ".job"; }

  const std::string folder_;
  const Clock& clock_;
  std::map<std::string, config::Job> jobs_;
  std::map<std::string, std::function<void()>> cancels_;
  std::set<std::string> unsettled_;  ///< have ended, and run yet on the disk
};

}  // namespace kvmbus::vmm
