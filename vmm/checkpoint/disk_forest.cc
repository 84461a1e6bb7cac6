// SPDX-License-Identifier: Apache-2.0
#include "vmm/checkpoint/disk_forest.h"

#include <algorithm>

namespace kvmbus::vmm {

std::vector<std::string> DiskForest::ChildrenOf(const std::string& file) const {
  std::vector<std::string> children;
  for (const auto& [child, parent] : parents) {
    if (parent == file) children.push_back(child);
  }
  return children;
}

std::optional<DiskForest::Step> DiskForest::NextStep(const std::set<std::string>& unneeded) const {
  for (const std::string& file : unneeded) {
    if (parents.count(file) == 0 || named.count(file) != 0) continue;
    const std::vector<std::string> children = ChildrenOf(file);
    const bool is_foreign =
        std::any_of(children.begin(), children.end(),
                    [this](const auto& child) { return foreign.count(child) != 0; });
    if (is_foreign) continue;
    if (children.empty()) return Step{Step::Kind::kDelete, file, ""};
    if (children.size() == 1) return Step{Step::Kind::kMerge, children.front(), file};
  }
  return std::nullopt;
}

void ReplaceMerged(const std::string& file, const std::string& into,
                   std::set<std::string>* unneeded) {
  if (unneeded->erase(file) == 0) unneeded->erase(into);
}

}  // namespace kvmbus::vmm
