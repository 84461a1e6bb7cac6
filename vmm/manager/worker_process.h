// SPDX-License-Identifier: Apache-2.0
/// \file
/// Starting a worker and watching it end.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

#include "config/vm.pb.h"
#include "vmm/os/fd.h"

namespace kvmbus::vmm {

struct WorkerCommand {
  std::string program;
  std::string run_dir;   ///< exists
  std::string log_path;  ///< appended to; one that has grown large becomes log_path.1 first
};

struct WorkerProcess {
  pid_t pid = -1;
  Fd pidfd;  ///< readable when it has ended
};

/// Opens a stream to the journal whose entries carry this identifier.
using JournalOpener = std::function<Result<Fd>(const std::string& identifier)>;

/// From now on SpawnWorker's processes log there, as "vmm-NAME", and to their files only where it
/// fails. Owners of shared disks keep their files, which errors name.
void LogWorkersToJournal(JournalOpener open);

/// Starts it in a session of its own, so that it outlives vmmd.
Result<WorkerProcess> SpawnWorker(const WorkerCommand& command, const config::Vm& vm);

/// Starts the owner of a shared disk likewise.
Result<WorkerProcess> SpawnDiskOwner(const WorkerCommand& command, const std::string& image);

/// A worker that somebody else started.
Result<WorkerProcess> AdoptWorker(pid_t pid);

/// Reaps a child that has ended: "was killed by signal 9 (Killed)", "exited with status 1"; "" for
/// one that is no child of ours.
std::string ReapWorker(pid_t pid);

}  // namespace kvmbus::vmm
