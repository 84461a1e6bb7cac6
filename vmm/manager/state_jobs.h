// SPDX-License-Identifier: Apache-2.0
/// \file
/// StateJobs: saves and upgrades of machines, each as a job.
#pragma once

#include <memory>
#include <string>

#include "vmm/manager/capture_follower.h"
#include "vmm/manager/inventory.h"
#include "vmm/manager/jobs.h"

namespace kvmbus::vmm {

/// Home: the manager's loop, functions and callbacks.
class StateJobs {
 public:
  /// Ends what an earlier vmmd left: before anybody else uses the inventory.
  StateJobs(Loop& loop, Inventory& inventory, Jobs& jobs);
  ~StateJobs();

  /// Asked for again with the same request id, it is the same job. A save can be cancelled until
  /// the machine is stopped, also while it waits for a merge; a vmmd that starts waits for what the
  /// worker makes of it.
  Result<config::Job> Save(const std::string& vm, bool compress, const std::string& request_id);
  /// It is over when this returns; see Inventory::Upgrade.
  Result<config::Job> Upgrade(const std::string& vm, bool discard_saved_states,
                              const std::string& request_id);

 private:
  Result<config::Job> Begin(config::JobKind kind, const std::string& vm,
                            const std::string& request_id);
  void End(const std::string& job, const Result<void>& result);
  void Recover();
  void AwaitSave(const config::Job& job);
  void Settle(const config::Job& job);

  Inventory& inventory_;
  Jobs& jobs_;
  CaptureFollower follower_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvmbus::vmm
