// SPDX-License-Identifier: Apache-2.0
/// \file
/// Transfers: machines leave this host as files, and come to it, each as a job.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "vmm/config/vm_import.h"
#include "vmm/manager/checkpoints.h"
#include "vmm/manager/file_thread.h"
#include "vmm/manager/transfer.h"

namespace kvmbus::vmm {

/// Files are copied into a folder that the job makes. If it fails, or vmmd ends in it, the folder
/// goes again. An export is one when all of it is there; an imported copy is a machine when the
/// inventory has it.
///
/// Home: the manager's loop, functions and callbacks. Files are copied on a thread of its own.
class Transfers {
 public:
  using Ended = Checkpoints::Ended;

  /// Of a machine that runs.
  enum class Capture {
    kSavedState,       ///< memory, devices and disks of one instant
    kDataConsistent,   ///< its file systems at rest, no memory
    kCrashConsistent,  ///< the disks alone
  };
  struct ExportOptions {
    std::string vm;          ///< id
    std::string folder;      ///< a folder of the machine's name is made in it
    std::string checkpoint;  ///< id or name: it alone, as a machine; "": the machine, with all
    Capture capture = Capture::kSavedState;
    std::string request_id;  ///< asked for again, it is the same job
  };

  /// Undoes what an earlier vmmd left: before anybody else uses the inventory, after `checkpoints`.
  Transfers(Loop& loop, Inventory& inventory, Checkpoints& checkpoints, Jobs& jobs,
            DiskFiles& files);
  ~Transfers();

  /// `ended` may be null. One that runs goes on: a checkpoint is made for it, and deleted
  /// afterwards.
  Result<config::Job> Export(const ExportOptions& options, Ended ended);

  struct Imported {
    ImportPlan plan;
    std::optional<config::Job> job;  ///< of a copy
  };
  /// Unless there are obstacles or it is only `compared`. A copy is there when its job has ended.
  Result<Imported> Import(ImportOptions options, bool compare, const std::string& request_id,
                          Ended ended);

 private:
  /// A job under way.
  struct Work {
    config::Job job;
    std::vector<ConfigMove> configs;
    bool flatten = false;
    Transfer transfer;
    std::shared_ptr<std::atomic<bool>> cancelled = std::make_shared<std::atomic<bool>>(false);
    /// All files are there, or an error and none is.
    std::function<void(const config::Job&, const Result<void>&)> made;
  };

  void Run(const std::shared_ptr<Work>& work);
  void Make(const std::shared_ptr<Work>& work);
  void Finish(const std::shared_ptr<Work>& work, const Result<void>& result);
  void Recover();
  void End(const config::Job& job, const Result<void>& result, const Ended& ended);

  // transfer_export.cc
  void ExportFromCheckpoint(const config::Job& job, bool alone, const Ended& ended);
  Result<config::Job> ExportAtRest(config::Job job, const config::Vm& vm, const Ended& ended);
  Result<config::Job> ExportRunning(config::Job job, const ExportOptions& options,
                                    const Ended& ended);
  void DropOwnCheckpoint(const config::Job& job, const Result<void>& result, const Ended& ended);

  // transfer_import.cc
  Result<ImportPlan> Compare(const ImportOptions& options) const;
  Result<config::Job> ImportCopy(const ImportPlan& plan, const std::string& request_id,
                                 Ended ended);

  Loop& loop_;
  Inventory& inventory_;
  Checkpoints& checkpoints_;
  Jobs& jobs_;
  DiskFiles& files_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  FileThread file_thread_{loop_, "work/copies"};  // last: its work uses the above
};

}  // namespace kvmbus::vmm
