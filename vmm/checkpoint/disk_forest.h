// SPDX-License-Identifier: Apache-2.0
/// \file
/// DiskForest: the image files of a VM and of its checkpoints, and what is to become of those that
/// no configuration needs any more.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace kvmbus::vmm {

/// Differencing images are trees: each file has one parent, and any number of children.
struct DiskForest {
  std::map<std::string, std::string> parents;  ///< of each file; "": none, a base
  std::set<std::string> named;                 ///< by a configuration, as a disk
  std::set<std::string> foreign;               ///< images of no configuration: somebody else's

  std::vector<std::string> ChildrenOf(const std::string& file) const;

  /// What to do with one of `unneeded`, files that were disks of checkpoints or states that are
  /// gone. A file without children is deleted. One with a single child is what that child stands
  /// on: the child is merged into it, and takes its place. One with several stays, and so does one
  /// with a foreign child.
  struct Step {
    enum class Kind { kDelete, kMerge };
    Kind kind;
    std::string file;  ///< the file to delete, or to merge into its parent
    std::string into;  ///< kMerge: that parent
    bool operator==(const Step&) const = default;
  };
  std::optional<Step> NextStep(const std::set<std::string>& unneeded) const;
};

/// A file was merged into `into`, and takes its place: it is needed as much as the file was.
void ReplaceMerged(const std::string& file, const std::string& into,
                   std::set<std::string>* unneeded);

}  // namespace kvmbus::vmm
