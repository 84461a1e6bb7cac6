// SPDX-License-Identifier: Apache-2.0
/// \file
/// Where the parent of a differencing image is, and what to write into a child about it. What an
/// image says of its parent is a stranger's word: it may name no file outside of the roots.
#pragma once

#include <string>
#include <vector>

#include "virtdev/disk/image.h"

namespace kvmbus::virtdev {

/// The folders in which parents may lie, without symbolic links: `roots`, or by default the folder
/// of `image` and the one above it, which is left out if it is "/".
vmm::Result<std::vector<std::string>> ParentRoots(const std::string& image,
                                                  const std::vector<std::string>& roots);

/// The files that a reference may mean, in the order in which they are tried: its paths, then their
/// base names in the child's own folder. Windows' separators become ours. A path with a drive
/// letter, a volume or a server counts for its base name alone. `folder` is the child's.
std::vector<std::string> ParentCandidates(const std::string& folder, const ParentReference& parent);

/// The first of the candidates that exists within the roots, without symbolic links. kNotFound
/// names what was looked for; kPermissionDenied says that it lies outside of the roots.
vmm::Result<std::string> FindParent(const std::string& child, const ParentReference& parent,
                                    const std::vector<std::string>& roots);

/// The paths of `parent` for a child that will be at `child`: relative, with Windows' separators,
/// and absolute. Where Windows has a drive ("C:\images\base.vhdx") a Linux path has none
/// ("\srv\images\base.vhdx"): on Windows that is a path of the current drive. kInvalidArgument: a
/// backslash in a name.
vmm::Result<std::vector<ParentReference::Path>> PathsToParent(const std::string& child,
                                                              const std::string& parent);

}  // namespace kvmbus::virtdev
