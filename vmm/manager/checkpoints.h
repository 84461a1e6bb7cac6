// SPDX-License-Identifier: Apache-2.0
/// \file
/// Checkpoints: made, applied, renamed and deleted, each as a job.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "vmm/checkpoint/disk_files.h"
#include "vmm/manager/capture_follower.h"
#include "vmm/manager/disk_merger.h"
#include "vmm/manager/file_thread.h"
#include "vmm/manager/inventory.h"
#include "vmm/manager/jobs.h"

namespace kvmbus::vmm {

/// A job that changes files comes in two halves. First it prepares: new files that nobody names
/// yet. If that fails, or vmmd ends in it, they are removed, and nothing has been. Then it commits:
/// the whole change is written into the job's file, and made; a vmmd that ends in it makes it again
/// when it starts, before it serves anybody.
///
/// Home: the manager's loop, functions and callbacks. File work is done on a thread of its own.
class Checkpoints {
 public:
  enum class Kind {
    kStandard,
    kProduction,
    kDisks,  ///< as a crash would leave them: no memory, file systems as they are
  };
  struct CreateOptions {
    std::string vm;            ///< id
    std::string name;          ///< "": the default
    std::string request_id;    ///< asked for again, it is the same job
    std::optional<Kind> kind;  ///< none: as the VM's policy says
    bool automatic = false;
    std::string id;         ///< "": a new one
    bool compress = false;  ///< the memory of a running one
    /// Gone with the job that it is made for: neither policy nor number stand in its way.
    bool temporary = false;
  };
  using Ended = std::function<void(const Result<void>&)>;

  /// Ends what an earlier vmmd left: before anybody else uses the inventory.
  Checkpoints(Loop& loop, Inventory& inventory, Jobs& jobs, DiskFiles& files);
  ~Checkpoints();

  /// `ended` may be null.
  Result<config::Job> Create(const CreateOptions& options, Ended ended);
  /// A job of another kind whose first part is a checkpoint, and which is cancelled with that.
  /// `then` is called when there is one, or none; if this returns an error, the job has ended.
  using Created = std::function<void(const config::Job& job, const Result<void>& made)>;
  Result<config::Job> BeginWithCreate(config::Job job, const CreateOptions& first, Created then);
  /// The VM is turned off if it runs. It is Saved afterwards, or Off if the checkpoint has no
  /// memory; what it had before is gone, unless `checkpoint_first`.
  Result<config::Job> Apply(const std::string& vm, const std::string& checkpoint,
                            bool checkpoint_first, const std::string& request_id, Ended ended);
  /// And all that grew from it, with `subtree`. Disks are merged afterwards, in the background.
  /// kFailedPrecondition: it is being exported.
  Result<config::Job> Delete(const std::string& vm, const std::string& checkpoint, bool subtree,
                             const std::string& request_id, Ended ended);
  /// One that was made for an export, by that.
  Result<config::Job> DeleteOwn(const std::string& vm, const std::string& id, Ended ended);
  Result<void> Rename(const std::string& vm, const std::string& checkpoint,
                      const std::string& name);

  /// For others who use image files of a VM.
  ImageWorker& image_worker() { return merger_; }

  /// Starts the VM. One with automatic checkpoints gets one first, in place of the last one.
  void Start(const std::string& vm, Ended ended);

 private:
  Result<config::Job> Begin(config::JobKind kind, const std::string& vm,
                            const std::string& request_id, const std::string& what);
  void MakeChildren(const config::Job& job, const config::Vm& before, const config::Vm& next,
                    const Ended& ended);
  void Recover();
  Result<config::Job> BeginDelete(const std::string& vm, const std::string& id, bool subtree,
                                  const std::string& request_id, Ended ended);
  void PlanDelete(config::Job job, bool subtree, const Ended& ended);
  void DeleteAutomatic(const std::string& vm, const std::string& but);
  void Commit(config::Job job, const Ended& ended);
  void Undo(config::Job job, const Error& error, const Ended& ended);
  void End(const config::Job& job, const Result<void>& result, const Ended& ended);

  // checkpoint_create.cc
  void PlanCreate(config::Job job, const CreateOptions& options, const Ended& ended);
  void CaptureRunning(const config::Job& job, Kind kind, bool may_fall_back, const Ended& ended);
  void Freeze(const config::Job& job, bool may_fall_back, const Ended& ended);
  void Capture(const config::Job& job, Kind kind, Ended done);
  void AwaitCapture(const config::Job& job);
  bool IsWhole(const config::Job& job) const;
  void SettleChildren(config::Job* job);

  // checkpoint_apply.cc
  Result<config::Job> ApplyAfterCreate(const std::string& vm, const std::string& checkpoint,
                                       const std::string& request_id, Ended ended);
  void AwaitMerger(const config::Job& job, const Ended& ended);
  void StartApply(const config::Job& job, const Ended& ended);
  void PlanApply(config::Job job, const Ended& ended);

  Loop& loop_;
  Inventory& inventory_;
  Jobs& jobs_;
  DiskFiles& files_;
  DiskMerger merger_;
  CaptureFollower follower_;
  Inventory::Subscription subscription_;
  /// Machines with automatic checkpoints: how their last run ended does not matter any more.
  std::set<std::string> starting_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  FileThread file_thread_{loop_, "work/files"};  // last: its work uses the above
};

}  // namespace kvmbus::vmm
