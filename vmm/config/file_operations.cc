// SPDX-License-Identifier: Apache-2.0
#include "vmm/config/file_operations.h"

#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "vmm/os/file.h"

namespace kvmbus::vmm {

using std::filesystem::path;

Result<void> FileOperations::Replace(const std::string& file, std::string_view content) {
  TRY_VOID(MakeFolders(path(file).parent_path().string(), 0750));
  return ReplaceFile(file, content, 0640);
}

Result<void> FileOperations::Remove(const std::string& file) {
  const path folder = path(file).parent_path();
  if (::unlink(file.c_str()) < 0) {
    if (errno == ENOENT || errno == ENOTDIR) return {};
    return Error::FromErrno(errno, fmt::format("deleting '{}'", file));
  }
  if (folder.filename() == path(file).stem() && ::rmdir(folder.c_str()) == 0)
    return SyncFolder(folder.parent_path().string());
  return SyncFolder(folder.string());
}

}  // namespace kvmbus::vmm
