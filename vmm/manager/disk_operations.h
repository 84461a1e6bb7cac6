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

  explicit DiskOperations(Inventory& inventory) : inventory_(inventory) {}

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

  Inventory& inventory_;
};

}  // namespace kvmbus::vmm
