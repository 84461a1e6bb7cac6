// SPDX-License-Identifier: Apache-2.0
/// \file
/// DiskOperations: changes of image files that a running virtual machine uses.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "vmm/manager/inventory.h"

namespace kvmbus::vmm {

/// Home: the manager's loop, functions and callbacks. Errors are those of the worker; kNotFound: no
/// running virtual machine uses the file.
class DiskOperations {
 public:
  using Done = Inventory::Done;
  struct Place {
    std::string vm;  ///< its id
    worker::DiskPlace disk;
  };
  using Found = std::function<void(const Result<Place>&)>;

  /// Whose changes they are. Those of a job are made while the machine is reserved for it, those of
  /// a user while it is for none.
  enum class For { kJobs, kUser };
  DiskOperations(Inventory& inventory, For whom) : inventory_(inventory), whom_(whom) {}

  /// What a user does to an image by himself.
  enum class ByHand { kResize, kMerge, kOfflineMerge };
  /// kFailedPrecondition: a checkpoint names the image, or a merge for one has to do with it. To be
  /// merged it must not be a disk of a machine that has checkpoints either; nor, offline, of one
  /// that is off, which would not find it.
  Result<void> CheckByHand(const std::string& path, ByHand what) const;

  /// Who uses the file, and how far a change of that disk is.
  void Find(const std::string& path, Found found);
  void Resize(const std::string& path, uint64_t size_bytes, Done done);
  /// The configuration names the child before it is made, and as the disk once it is.
  void CreateChild(const std::string& parent, const std::string& path, Done done);
  /// The configuration of a machine whose top is merged names the parent afterwards.
  void Merge(const std::string& path, Done done);
  /// Of the disk that uses the file.
  void Cancel(const std::string& path, Done done);

 private:
  struct Search;

  void AskNext(std::shared_ptr<Search> search);
  void StartChild(const Place& place, const std::string& path, Done done);
  Result<void> ChildIsMade(const Place& place);

  Result<void> BeginChange(const std::string& vm);
  void EndChange(const std::string& vm);

  Inventory& inventory_;
  const For whom_;
};

}  // namespace kvmbus::vmm
