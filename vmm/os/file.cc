// SPDX-License-Identifier: Apache-2.0
#include "vmm/os/file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "vmm/os/file_copy.h"

namespace kvmbus::vmm {

std::string TemporaryName(const std::string& path) {
  return fmt::format("{}{}.{}", path, kUnfinishedSuffix, ::getpid());
}

bool FileExists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

std::string FolderOf(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

Result<Fd> OpenFile(const std::string& path, int flags, mode_t mode) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  if (fd < 0) return Error::FromErrno(errno, fmt::format("'{}'", path));
  return Fd(fd);
}

Result<Fd> OpenRegularFile(const std::string& path) {
  // Without O_NONBLOCK a FIFO that nobody writes to would wait here.
  Fd fd = TRY(OpenFile(path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_NOCTTY));
  struct stat about = {};
  if (::fstat(fd.get(), &about) < 0) return Error::FromErrno(errno, fmt::format("'{}'", path));
  if (!S_ISREG(about.st_mode)) return MakeError(Code::kDataLoss, "'{}' is no regular file", path);
  if (::fcntl(fd.get(), F_SETFL, 0) < 0) return Error::FromErrno(errno, "clearing O_NONBLOCK");
  return fd;
}

Result<std::string> ReadWholeFile(const std::string& path, uint64_t limit_bytes) {
  const Fd fd = TRY(OpenFile(path, O_RDONLY));
  std::string content;
  char buffer[16384];
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error::FromErrno(errno, fmt::format("reading '{}'", path));
    if (n == 0) return content;
    content.append(buffer, static_cast<size_t>(n));
    if (content.size() > limit_bytes)
      return MakeError(Code::kOutOfRange, "'{}' is larger than {} bytes", path, limit_bytes);
  }
}

Result<Fd> OpenNameless(const std::string& folder, int flags, mode_t mode) {
  return OpenFile(folder, O_TMPFILE | flags, mode);
}

std::string NameOfFd(int fd) { return fmt::format("/proc/self/fd/{}", fd); }

int GiveName(int fd, const std::string& path) {
  return ::linkat(AT_FDCWD, NameOfFd(fd).c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW);
}

namespace {

Result<void> WriteDurably(int fd, std::string_view content) {
  TRY_VOID(PWriteAll(fd, {reinterpret_cast<const uint8_t*>(content.data()), content.size()}, 0));
  return SyncFile(fd);
}

/// It has the name only when it is whole, where the file system has files without names: who is
/// killed while the disk works leaves nothing.
Result<void> WriteTemporary(const std::string& path, std::string_view content, mode_t mode) {
  if (auto nameless = OpenNameless(FolderOf(path), O_WRONLY, mode); nameless.ok()) {
    TRY_VOID(WriteDurably(nameless->get(), content));
    ::unlink(path.c_str());
    if (GiveName(nameless->get(), path) == 0) return {};
  }
  const Fd fd = TRY(OpenFile(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, mode));
  const auto written = WriteDurably(fd.get(), content);
  if (!written.ok()) ::unlink(path.c_str());
  return written;
}

}  // namespace

Result<void> ReplaceFile(const std::string& path, std::string_view content, mode_t mode) {
  const std::string temporary = TemporaryName(path);
  TRY_VOID_CTX(WriteTemporary(temporary, content, mode), "writing '{}'", path);
  if (::rename(temporary.c_str(), path.c_str()) < 0) {
    const int saved = errno;
    ::unlink(temporary.c_str());
    return Error::FromErrno(saved, fmt::format("renaming '{}' to '{}'", temporary, path));
  }
  return SyncFolder(FolderOf(path));
}

namespace {

/// The name for which this one was a temporary one, "" if it is none.
std::string_view NameThatItWasFor(std::string_view name) {
  const size_t dot = name.find_last_not_of("0123456789");
  if (dot == std::string_view::npos || dot + 1 == name.size() || name[dot] != '.') return {};
  name = name.substr(0, dot);
  if (!name.ends_with(kUnfinishedSuffix)) return {};
  return name.substr(0, name.size() - kUnfinishedSuffix.size());
}

/// All of a folder, or those for one name in it.
std::vector<std::string> Unfinished(const std::string& folder, std::string_view name) {
  std::vector<std::string> list;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string there = entry.path().filename().string();
    const std::string_view wanted = NameThatItWasFor(there);
    if (!wanted.empty() && (name.empty() || wanted == name)) list.push_back(entry.path().string());
  }
  return list;
}

}  // namespace

std::vector<std::string> UnfinishedOf(const std::string& path) {
  return Unfinished(FolderOf(path), std::filesystem::path(path).filename().string());
}

void RemoveUnfinished(const std::string& folder) {
  for (const std::string& path : Unfinished(folder, "")) ::unlink(path.c_str());
}

void RemoveUnfinishedOf(const std::string& path) {
  for (const std::string& one : UnfinishedOf(path)) ::unlink(one.c_str());
}

Result<void> LinkFile(const std::string& from, const std::string& to) {
  const std::string temporary = TemporaryName(to);
  ::unlink(temporary.c_str());
  if (::link(from.c_str(), temporary.c_str()) < 0) {
    // Never taken as done, even if `to` is there: that may be another file.
    if (errno == ENOENT) return Error::FromErrno(errno, fmt::format("'{}'", from));
    const Fd file = TRY(OpenFile(from, O_RDONLY));
    TRY_VOID(CopyToNewFile(file.get(), temporary, nullptr));
  }
  if (::rename(temporary.c_str(), to.c_str()) < 0)
    return Error::FromErrno(errno, fmt::format("replacing '{}'", to));
  ::unlink(temporary.c_str());  // two names of one file are not renamed over each other
  return SyncFolder(FolderOf(to));
}

Result<void> RemoveFile(const std::string& path) {
  if (::unlink(path.c_str()) < 0) {
    if (errno == ENOENT) return {};
    return Error::FromErrno(errno, fmt::format("removing '{}'", path));
  }
  return SyncFolder(FolderOf(path));
}

Result<uint64_t> FileSize(int fd) {
  const off_t end = ::lseek(fd, 0, SEEK_END);  // serves block devices too
  if (end < 0) return Error::FromErrno(errno, "finding a file's size");
  return static_cast<uint64_t>(end);
}

Result<void> SyncFile(int fd) {
  if (::fdatasync(fd) < 0) return Error::FromErrno(errno, "fdatasync");
  return {};
}

Result<void> SyncFolder(const std::string& path) {
  const Fd fd = TRY(OpenFile(path, O_RDONLY | O_DIRECTORY));
  if (::fsync(fd.get()) < 0) return Error::FromErrno(errno, fmt::format("syncing '{}'", path));
  return {};
}

Result<void> MakeNewFolder(const std::string& path, mode_t mode) {
  if (::mkdir(path.c_str(), mode) < 0)
    return Error::FromErrno(errno, fmt::format("making the folder '{}'", path));
  return SyncFolder(FolderOf(path));
}

Result<std::string> RealPath(const std::string& path) {
  std::error_code error;
  const auto real = std::filesystem::canonical(path, error);
  if (error) return Error::FromErrno(error.value(), fmt::format("'{}'", path));
  return real.string();
}

Result<void> MakeFolders(const std::string& path, mode_t mode) {
  std::string prefix;
  for (size_t at = 0; at != std::string::npos;) {
    at = path.find('/', at + 1);
    prefix = path.substr(0, at);
    if (prefix.empty()) continue;
    if (::mkdir(prefix.c_str(), mode) < 0 && errno != EEXIST)
      return Error::FromErrno(errno, fmt::format("making folder '{}'", prefix));
  }
  return {};
}

namespace {

/// `length` 0: to the end, wherever that is.
Result<void> SetLock(int fd, short type, off_t start, off_t length) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = start;
  lock.l_len = length;
  if (::fcntl(fd, F_OFD_SETLK, &lock) == 0) return {};
  if (errno == EAGAIN || errno == EACCES)
    return Error(Code::kUnavailable, "it is in use by another process");
  return Error::FromErrno(errno, "locking the file");
}

short TypeOf(LockKind kind) { return kind == LockKind::kShared ? F_RDLCK : F_WRLCK; }

}  // namespace

Result<void> LockFile(int fd, LockKind kind) { return SetLock(fd, TypeOf(kind), 0, 0); }

Result<void> HandOverLock(int from, int to, LockKind kind) {
  // The first byte, then the rest: a third who wants the whole file meets one of the two locks.
  TRY_VOID(SetLock(from, F_UNLCK, 0, 1));
  auto taken = SetLock(to, TypeOf(kind), 0, 1);
  if (!taken.ok()) {
    (void)SetLock(from, F_RDLCK, 0, 1);
    return taken;
  }
  TRY_VOID(SetLock(from, F_UNLCK, 0, 0));
  return SetLock(to, TypeOf(kind), 0, 0);
}

}  // namespace kvmbus::vmm
