// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/chain/parent_path.h"

#include <algorithm>
#include <filesystem>

namespace kvmbus::virtdev {
namespace {

namespace fs = std::filesystem;
using vmm::Code;
using vmm::Result;
using PathKind = ParentReference::Path::Kind;

/// Without symbolic links; the error is errno's.
Result<std::string> Resolved(const std::string& path) {
  std::error_code error;
  const fs::path whole = fs::canonical(path, error);
  if (error) return vmm::Error::FromErrno(error.value(), fmt::format("'{}'", path));
  return whole.string();
}

/// The folder that an image lies in, or will lie in.
Result<std::string> FolderOf(const std::string& image) {
  auto whole = Resolved(image);
  if (whole.ok()) return fs::path(*whole).parent_path().string();
  return Resolved(fs::absolute(image).parent_path().string());
}

bool LiesIn(const std::string& path, const std::string& folder) {
  if (folder == "/") return true;
  return path.size() > folder.size() && path.starts_with(folder) && path[folder.size()] == '/';
}

/// "..\base.vhdx" is "../base.vhdx".
std::string WithOurSeparators(std::string path) {
  std::replace(path.begin(), path.end(), '\\', '/');
  return path;
}

std::string BaseName(const std::string& path) {
  const std::string name = path.substr(path.find_last_of('/') + 1);
  return name == "." || name == ".." ? "" : name;
}

/// "\\?\C:\x", "\\server\x", "C:\x": a place that only Windows knows.
bool IsWindowsPlace(const std::string& path) {
  return path.starts_with("//") || (path.size() >= 2 && path[0] != '/' && path[1] == ':');
}

void AddCandidate(std::string path, std::vector<std::string>* candidates) {
  if (std::find(candidates->begin(), candidates->end(), path) == candidates->end())
    candidates->push_back(std::move(path));
}

}  // namespace

Result<std::vector<std::string>> ParentRoots(const std::string& image,
                                             const std::vector<std::string>& roots) {
  std::vector<std::string> resolved;
  for (const std::string& root : roots)
    resolved.push_back(TRY_CTX(Resolved(root), "a folder for parent images"));
  if (!resolved.empty()) return resolved;
  const fs::path folder = TRY(FolderOf(image));
  resolved.push_back(folder.string());
  const fs::path above = folder.parent_path();
  if (above != above.root_path()) resolved.push_back(above.string());
  return resolved;
}

std::vector<std::string> ParentCandidates(const std::string& folder,
                                          const ParentReference& parent) {
  std::vector<std::string> candidates;
  const fs::path own = folder;
  for (const ParentReference::Path& path : parent.paths) {
    const std::string text = WithOurSeparators(path.text);
    if (IsWindowsPlace(text) || path.kind == PathKind::kVolume) continue;
    const bool absolute = text.starts_with('/');
    if (absolute != (path.kind == PathKind::kAbsolute) || BaseName(text).empty()) continue;
    AddCandidate((absolute ? fs::path(text) : own / text).lexically_normal().string(), &candidates);
  }
  for (const ParentReference::Path& path : parent.paths) {
    const std::string name = BaseName(WithOurSeparators(path.text));
    if (!name.empty()) AddCandidate((own / name).lexically_normal().string(), &candidates);
  }
  return candidates;
}

Result<std::string> FindParent(const std::string& child, const ParentReference& parent,
                               const std::vector<std::string>& roots) {
  const std::string folder = TRY(FolderOf(child));
  std::string outside;
  for (const std::string& candidate : ParentCandidates(folder, parent)) {
    auto found = Resolved(candidate);
    if (!found.ok()) continue;
    const bool inside = std::any_of(roots.begin(), roots.end(), [&found](const std::string& root) {
      return LiesIn(*found, root);
    });
    if (inside) return found;
    outside = *std::move(found);
  }
  if (!outside.empty())
    return vmm::MakeError(Code::kPermissionDenied,
                          "the parent of '{}' would be '{}', outside of the folders where parents "
                          "may be: move the two images into one folder",
                          child, outside);
  return vmm::MakeError(Code::kNotFound,
                        "the parent of '{}' ('{}') does not exist: put it back, into the same "
                        "folder if you like, or name another place with 'vmctl disk reparent'",
                        child, parent.paths.empty() ? "" : parent.paths.front().text);
}

Result<std::vector<ParentReference::Path>> PathsToParent(const std::string& child,
                                                         const std::string& parent) {
  const fs::path from = TRY(FolderOf(child));
  const std::string to = TRY(Resolved(parent));
  std::string relative = fs::path(to).lexically_relative(from).string();
  std::string absolute = to;
  if (to.find('\\') != std::string::npos || from.string().find('\\') != std::string::npos)
    return vmm::MakeError(Code::kInvalidArgument,
                          "the path '{}' has a backslash, which a differencing image cannot name: "
                          "rename it",
                          to);
  if (!relative.starts_with("../")) relative = "./" + relative;
  for (std::string* path : {&relative, &absolute})
    std::replace(path->begin(), path->end(), '/', '\\');
  return std::vector<ParentReference::Path>{{PathKind::kRelative, relative},
                                            {PathKind::kAbsolute, absolute}};
}

}  // namespace kvmbus::virtdev
