// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/new_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "vmm/os/file.h"

namespace kvmbus::virtdev {

using vmm::Code;
using vmm::Result;

namespace {

vmm::Error ExistsAlready(const std::string& path) {
  return vmm::MakeError(Code::kAlreadyExists,
                        "'{}' exists already; choose another name, or delete it first", path);
}

}  // namespace

Result<NewFile> NewFile::Create(const std::string& path) {
  struct stat status = {};
  if (::lstat(path.c_str(), &status) == 0) return ExistsAlready(path);
  std::string temporary = fmt::format("{}.new.{}", path, ::getpid());
  ::unlink(temporary.c_str());
  TRY(vmm::OpenFile(temporary, O_RDWR | O_CREAT | O_EXCL, 0640)).Reset();
  auto file = OpenBlockFile(temporary, false);
  if (!file.ok()) {
    ::unlink(temporary.c_str());
    return std::move(file.error());
  }
  return NewFile(path, std::move(temporary), std::move(file).value());
}

NewFile::~NewFile() {
  if (file_) ::unlink(temporary_.c_str());
}

std::unique_ptr<BlockFile> NewFile::Take() {
  ::unlink(temporary_.c_str());
  return std::move(file_);
}

Result<void> NewFile::Publish() {
  TRY_VOID(file_->Flush());
  int status = ::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE);
  // Not every file system has a rename that does not replace; a link never does.
  if (status < 0 && errno == EINVAL) status = ::link(temporary_.c_str(), path_.c_str());
  if (status < 0) {
    if (errno == EEXIST) return ExistsAlready(path_);
    return vmm::Error::FromErrno(errno, fmt::format("creating '{}'", path_));
  }
  const std::string folder = std::filesystem::path(path_).parent_path().string();
  return vmm::SyncFolder(folder.empty() ? "." : folder);
}

}  // namespace kvmbus::virtdev
