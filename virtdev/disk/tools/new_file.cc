// SPDX-License-Identifier: Apache-2.0
#include "virtdev/disk/tools/new_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "vmm/os/file.h"

namespace kvmbus::virtdev {

using vmm::Code;
using vmm::Result;

namespace {

vmm::Error ExistsAlready(const std::string& path) {
  return vmm::MakeError(Code::kAlreadyExists,
                        "'{}' exists already; choose another name, or delete it first", path);
}

Result<std::unique_ptr<BlockFile>> CreateNameless(const std::string& folder) {
  const vmm::Fd fd = TRY(vmm::OpenNameless(folder, O_RDWR, 0640));
  return OpenBlockFile(vmm::NameOfFd(fd.get()), false);
}

}  // namespace

Result<NewFile> NewFile::Create(const std::string& path) {
  struct stat status = {};
  if (::lstat(path.c_str(), &status) == 0) return ExistsAlready(path);
  if (auto nameless = CreateNameless(vmm::FolderOf(path)); nameless.ok())
    return NewFile(path, "", std::move(nameless).value());
  std::string temporary = vmm::TemporaryName(path);
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
  if (file_ && !temporary_.empty()) ::unlink(temporary_.c_str());
}

std::unique_ptr<BlockFile> NewFile::Take() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  return std::move(file_);
}

Result<void> NewFile::Publish() {
  TRY_VOID(file_->Flush());
  if (GiveName() < 0) {
    if (errno == EEXIST) return ExistsAlready(path_);
    return vmm::Error::FromErrno(errno, fmt::format("creating '{}'", path_));
  }
  return vmm::SyncFolder(vmm::FolderOf(path_));
}

int NewFile::GiveName() const {
  if (temporary_.empty()) return vmm::GiveName(file_->fd(), path_);
  const int status =
      ::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE);
  // Not every file system has a rename that does not replace; a link never does.
  return status < 0 && errno == EINVAL ? ::link(temporary_.c_str(), path_.c_str()) : status;
}

}  // namespace kvmbus::virtdev
