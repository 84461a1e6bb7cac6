// SPDX-License-Identifier: Apache-2.0
/// \file
/// ConfigRegistry: which virtual machines this host has, and where their configurations are:
/// data.vmcx, as Hyper-V's. It is the truth: a file that it does not name is no machine's.
#pragma once

#include <map>
#include <set>
#include <string>

#include "vmm/config/file_operations.h"
#include "vmm/result/result.h"

namespace kvmbus::vmm {

class ConfigRegistry {
 public:
  ConfigRegistry(FileOperations& files, std::string path) : files_(files), path_(std::move(path)) {}

  /// False: there is none yet.
  Result<bool> Load();

  /// Paths by id.
  const std::map<std::string, std::string>& machines() const { return state_.machines; }
  /// Ids of machines that are on their way to another version.
  const std::set<std::string>& upgrades() const { return state_.upgrades; }
  /// Paths by id of machines whose files are to go.
  const std::map<std::string, std::string>& deletions() const { return state_.deletions; }

  /// Each is one durable step: done or not.
  Result<void> Register(const std::string& id, const std::string& path);
  Result<void> RegisterAll(const std::map<std::string, std::string>& machines);  ///< paths by id
  Result<void> BeginDeletion(const std::string& id);  ///< it is no machine any more
  Result<void> EndDeletion(const std::string& id);
  Result<void> BeginUpgrade(const std::string& id);
  Result<void> EndUpgrade(const std::string& id);

 private:
  struct State {
    std::map<std::string, std::string> machines;
    std::map<std::string, std::string> deletions;
    std::set<std::string> upgrades;
  };
  Result<void> Store(State changed);

  FileOperations& files_;
  const std::string path_;
  State state_;
};

}  // namespace kvmbus::vmm
