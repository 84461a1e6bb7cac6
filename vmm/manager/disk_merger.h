// SPDX-License-Identifier: Apache-2.0
/// \file
/// DiskMerger: gets rid of the image files that no checkpoint needs any more, in the background.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "vmm/checkpoint/disk_files.h"
#include "vmm/checkpoint/disk_forest.h"
#include "vmm/event/loop.h"
#include "vmm/manager/disk_operations.h"
#include "vmm/manager/file_thread.h"
#include "vmm/manager/inventory.h"
#include "vmm/manager/jobs.h"

namespace kvmbus::vmm {

/// Notes that a configuration needs the file no more.
void AddUnneeded(config::Vm* vm, const std::string& file);

/// Works on one file of a VM at a time: of a running VM by its worker, else here. What is owed is
/// in the VM's configuration (`unneeded_disks`, `merging`), so that it survives every restart.
///
/// Home: the manager's loop; merges of files that nobody uses run on a thread of its own.
class DiskMerger final : public ImageWorker {
 public:
  DiskMerger(Loop& loop, Inventory& inventory, Jobs& jobs, DiskFiles& files);
  ~DiskMerger() override;

  /// Stops what is done for the VM; `idle` is called when nothing is, and nothing is until Resume.
  /// The two are counted.
  void Suspend(const std::string& vm, std::function<void()> idle) override;
  void Resume(const std::string& vm) override;

 private:
  struct Task {
    int suspended = 0;
    bool working = false;
    std::shared_ptr<std::atomic<bool>> cancelled;  ///< of what is working
    std::string live_file;                         ///< that a worker merges
    std::vector<std::function<void()>> waiters;
    std::string job;  ///< "": none yet
    Loop::TimerId timer = 0;
    uint64_t retry_ns = 0;  ///< the wait after the last failure
  };
  struct Plan {
    std::optional<DiskForest::Step> step;
    DiskForest forest;
    std::set<std::string> missing;             ///< files that are gone, or are not ours to delete
    std::map<std::string, std::string> links;  ///< disks that are symbolic links, and their files
  };

  void Pump(const std::string& vm);
  void OnPlan(const std::string& vm, const Result<Plan>& plan);
  void Delete(const std::string& vm, const Plan& plan);
  void FollowLinks(const std::string& vm, const std::map<std::string, std::string>& links);
  void BeginMerge(const std::string& vm, config::Vm config, const DiskForest& forest);
  void Merge(const std::string& vm, const config::DiskMerge& merge);
  void MergeHere(const std::string& vm, const config::DiskMerge& merge);
  void FinishMerge(const std::string& vm, const config::DiskMerge& merge);
  void FollowLive(const std::string& vm);
  void AwaitLive(const std::string& vm, const Error& error);
  void Ended(const std::string& vm, const Result<void>& result, bool all_done);
  Result<std::string> ParentOf(const std::string& file);
  std::vector<config::Vm> OthersThan(const std::string& vm) const;
  void AddOthers(const std::vector<config::Vm>& others, DiskForest* forest);
  void AddForeign(const std::set<std::string>& unneeded, DiskForest* forest);
  Result<Plan> MakePlan(const config::Vm& vm, const CheckpointMap& checkpoints,
                        const std::vector<config::Vm>& others);

  Loop& loop_;
  Inventory& inventory_;
  Jobs& jobs_;
  DiskFiles& files_;
  DiskOperations operations_;
  std::map<std::string, Task> tasks_;  // by VM
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  FileThread file_thread_{loop_, "work/merge"};  // last: its work uses the above
};

}  // namespace kvmbus::vmm
