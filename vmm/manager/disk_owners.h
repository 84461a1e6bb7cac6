// SPDX-License-Identifier: Apache-2.0
/// \file
/// DiskOwners: the processes that own the shared disks of the virtual machines that run.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "vmm/event/loop.h"
#include "vmm/manager/owner_call.h"
#include "vmm/manager/worker_process.h"
#include "vmm/shared_disk/protocol.h"

namespace kvmbus::vmm {

/// Home: the manager's loop. An owner lives as long as somebody here holds it or a virtual machine
/// is connected to it; one that dies while it is held is started anew. One that runs already, of a
/// former vmmd, is found by its socket.
class DiskOwners {
 public:
  struct Options {
    std::string run_dir;
    std::string program;  ///< vmm
    uint64_t start_timeout_ns = 60'000'000'000;
    uint64_t restart_ns = 100'000'000;  ///< pause before the next try of one that died
  };
  /// Dropped when the disk is needed no more.
  using Hold = std::shared_ptr<void>;
  using Done = std::function<void(const Result<Hold>&)>;

  DiskOwners(Loop& loop, Options options);
  ~DiskOwners();

  /// `done` when the owner of the image serves, or with the reason why there is none.
  void Acquire(const std::string& image, Done done);
  /// Somebody here holds it, and it serves.
  bool Serves(const std::string& image) const;
  /// Makes a disk that is served larger, and tells the guests. Errors: those of Image::Grow, and of
  /// an OwnerCall.
  void Grow(const std::string& image, uint64_t size_bytes, OwnerCall::Done done);

 private:
  struct Owner {
    std::string image, folder;
    Fd socket;
    std::vector<uint8_t> in;
    bool serves = false;
    bool starting = false;  ///< the process that we started has not served yet
    pid_t pid = -1;         ///< of the process that we started for it, until that has ended
    std::weak_ptr<void> hold;
    std::vector<Done> waiters;
    Loop::TimerId timer = 0;
    uint64_t deadline_ns = 0;
  };

  std::string LogPath(const Owner& owner) const { return owner.folder + "/owner.log"; }
  Hold MakeHold(Owner& owner);
  void Release(const std::string& folder);
  void Try(const std::string& folder);
  void TryLater(Owner& owner, uint64_t delay_ns);
  bool Greet(Owner& owner);
  Result<void> Spawn(Owner& owner);
  void OnReady(const std::string& folder);
  void OnReply(Owner& owner, const shared_disk::HelloReply& reply);
  void OnLost(Owner& owner);
  void OnProcessEnded(pid_t pid);
  void Fail(const std::string& folder, const Error& error);

  Loop& loop_;
  const Options options_;
  std::map<std::string, Owner> owners_;  ///< by folder
  struct Child {
    WorkerProcess process;
    std::string folder;
  };
  std::map<pid_t, Child> children_;
  std::map<uint64_t, std::unique_ptr<OwnerCall>> calls_;
  uint64_t next_call_ = 1;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvmbus::vmm
